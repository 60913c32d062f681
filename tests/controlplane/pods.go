package main

import (
	"fmt"
	"net"
	"net/http"

	certmanager "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"github.com/cert-manager/cert-manager/pkg/controller/cainjector"
	logf "github.com/cert-manager/cert-manager/pkg/logs"
	"github.com/cert-manager/cert-manager/pkg/util"
	"github.com/spf13/cobra"
	admission "k8s.io/api/admissionregistration/v1"
	core "k8s.io/api/core/v1"
	extensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/rest"
	registration "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metrics "sigs.k8s.io/controller-runtime/pkg/metrics/server"
)

// probedAddress is where cert-manager's chart asks whether its controller lives.
const probedAddress = ":9403"

// newCertManagerPodCommand returns cert-manager's controllers as its chart starts them in a pod.
func newCertManagerPodCommand() *cobra.Command {
	cmd := newCertManagerCommand()
	controllers := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, arguments []string) error {
		logf.InitLogs()
		listener, err := net.Listen("tcp", probedAddress)
		if err != nil {
			return err
		}
		mux := http.NewServeMux()
		mux.HandleFunc("/livez", func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintln(w, "ok")
		})
		go func() { _ = http.Serve(listener, mux) }()
		return controllers(cmd, arguments)
	}
	return inPod(cmd)
}

func newWebhookPodCommand() *cobra.Command { return inPod(newWebhookCommand()) }

// newCAInjectorPodCommand returns what writes CA certificates into webhooks and kinds.
func newCAInjectorPodCommand() *cobra.Command {
	return inPod(&cobra.Command{
		Use: "cainjector",
		RunE: func(_ *cobra.Command, _ []string) error {
			logf.InitLogs()
			log.SetLogger(logf.Log)
			ctx := server.SetupSignalContext()
			scheme := runtime.NewScheme()
			for _, add := range []func(*runtime.Scheme) error{
				certmanager.AddToScheme, core.AddToScheme, extensions.AddToScheme,
				registration.AddToScheme, admission.AddToScheme,
			} {
				if err := add(scheme); err != nil {
					return err
				}
			}
			config, err := rest.InClusterConfig()
			if err != nil {
				return err
			}
			// Without a user agent each write fails for want of a field manager.
			config = util.RestConfigWithUserAgent(config, "cainjector")
			run, err := manager.New(config, manager.Options{
				Scheme: scheme, Metrics: metrics.Options{BindAddress: "0"},
			})
			if err != nil {
				return err
			}
			err = cainjector.RegisterAllInjectors(ctx, run, cainjector.SetupOptions{
				EnabledReconcilersFor: map[string]bool{
					cainjector.MutatingWebhookConfigurationName:   true,
					cainjector.ValidatingWebhookConfigurationName: true,
					cainjector.APIServiceName:                     true,
					cainjector.CustomResourceDefinitionName:       true,
				},
			})
			if err != nil {
				return err
			}
			return run.Start(ctx)
		},
	})
}

// inPod makes a command take the flags that cert-manager's chart passes; those that it does not
// know are for parts that are not in here.
func inPod(cmd *cobra.Command) *cobra.Command {
	cmd.FParseErrWhitelist.UnknownFlags = true
	if flag := cmd.Flags().Lookup("kubeconfig"); flag != nil {
		delete(flag.Annotations, cobra.BashCompOneRequiredFlag)
	}
	cmd.SilenceUsage = true
	return cmd
}
