package main

import (
	"fmt"
	"time"

	"github.com/cert-manager/cert-manager/internal/webhook"
	"github.com/cert-manager/cert-manager/pkg/controller"
	// The controllers register themselves when imported.
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificate-shim/ingresses"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/approver"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/ca"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/selfsigned"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/issuing"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/keymanager"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/readiness"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/requestmanager"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/revisionmanager"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/trigger"
	_ "github.com/cert-manager/cert-manager/pkg/controller/clusterissuers"
	_ "github.com/cert-manager/cert-manager/pkg/controller/issuers"
	_ "github.com/cert-manager/cert-manager/pkg/issuer/ca"
	_ "github.com/cert-manager/cert-manager/pkg/issuer/selfsigned"
	logf "github.com/cert-manager/cert-manager/pkg/logs"
	"github.com/cert-manager/cert-manager/pkg/webhook/options"
	"github.com/spf13/cobra"
	"k8s.io/apiserver/pkg/server"
)

// What cert-manager's own command takes when no flag says otherwise.
const (
	defaultQPS               = 20
	defaultBurst             = 50
	defaultConcurrentWorkers = 5
	defaultMinimumBackoff    = time.Hour
	defaultMaximumBackoff    = 32 * time.Hour
)

// newCertManagerCommand returns cert-manager's controllers for CA and self-signed issuers, with the
// defaults of its own command.
func newCertManagerCommand() *cobra.Command {
	var kubeconfig string
	cmd := &cobra.Command{
		Use:   "cert-manager",
		Short: "Run cert-manager's controllers",
		RunE: func(_ *cobra.Command, _ []string) error {
			ctx := server.SetupSignalContext()
			factory, err := controller.NewContextFactory(ctx, controller.ContextOptions{
				Kubeconfig:         kubeconfig,
				KubernetesAPIQPS:   defaultQPS,
				KubernetesAPIBurst: defaultBurst,
				IssuerOptions: controller.IssuerOptions{
					ClusterResourceNamespace: "cert-manager",
				},
				CertificateOptions: controller.CertificateOptions{
					CertificateRequestMinimumBackoffDuration: defaultMinimumBackoff,
					CertificateRequestMaximumBackoffDuration: defaultMaximumBackoff,
				},
				IngressShimOptions: controller.IngressShimOptions{
					DefaultIssuerKind:  "Issuer",
					DefaultIssuerGroup: "cert-manager.io",
				},
			})
			if err != nil {
				return err
			}
			root, err := factory.Build()
			if err != nil {
				return err
			}
			failed := make(chan error)
			for name, construct := range controller.Known() {
				run, err := construct(factory)
				if err != nil {
					return fmt.Errorf("controller %s: %w", name, err)
				}
				go func() {
					if err := run.Run(defaultConcurrentWorkers, ctx); err != nil {
						failed <- fmt.Errorf("controller %s: %w", name, err)
					}
				}()
			}
			root.SharedInformerFactory.Start(ctx.Done())
			root.KubeSharedInformerFactory.Start(ctx.Done())
			root.HTTP01ResourceMetadataInformersFactory.Start(ctx.Done())
			select {
			case <-ctx.Done():
				return nil
			case err := <-failed:
				return err
			}
		},
	}
	cmd.Flags().StringVar(&kubeconfig, "kubeconfig", "", "how to reach the API server")
	_ = cmd.MarkFlagRequired("kubeconfig")
	return cmd
}

// newWebhookCommand returns cert-manager's webhook. It stamps who asked on a CertificateRequest,
// keeps its spec as it was, and asks RBAC whether somebody may approve for a signer.
func newWebhookCommand() *cobra.Command {
	config, err := options.NewWebhookConfiguration()
	cmd := &cobra.Command{
		Use:   "cert-manager-webhook",
		Short: "Run cert-manager's webhook",
		RunE: func(_ *cobra.Command, _ []string) error {
			logf.InitLogs()
			run, err := webhook.NewCertManagerWebhookServer(logf.Log, *config)
			if err != nil {
				return err
			}
			return run.Run(logf.NewContext(server.SetupSignalContext(), logf.Log))
		},
	}
	if err != nil {
		cmd.RunE = func(_ *cobra.Command, _ []string) error { return err }
		return cmd
	}
	options.AddConfigFlags(cmd.Flags(), config)
	return cmd
}
