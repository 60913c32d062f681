// Command controlplane is a Kubernetes control plane in one binary: etcd, the API server, the
// controller manager, cert-manager's controllers and its webhook, each the real component linked as
// a library, and kubectl under a link of that name.
//
// The sub-commands take the flags of the component they are named after, so that everything said in
// the components' own documentation holds. tests/stack starts one process for each.
package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/component-base/cli"
	kubectl "k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/util"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
)

// Only the command asked for is constructed: constructing the API server's takes over SIGTERM, and
// the controller manager would then not end by it.
var components = map[string]func() *cobra.Command{
	"etcd":                    newEtcdCommand,
	"kube-apiserver":          apiserver.NewAPIServerCommand,
	"kube-controller-manager": controllermanager.NewControllerManagerCommand,
	"cert-manager":            newCertManagerCommand,
	"cert-manager-webhook":    newWebhookCommand,
	"render-chart":            newChartCommand,
}

func main() {
	if filepath.Base(os.Args[0]) == "kubectl" {
		if err := cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand()); err != nil {
			util.CheckErr(err)
		}
		return
	}
	if len(os.Args) < 2 || components[os.Args[1]] == nil {
		names := strings.Join(slices.Sorted(maps.Keys(components)), "|")
		fmt.Fprintln(os.Stderr, "usage: controlplane", names, "FLAGS")
		os.Exit(2)
	}
	command := components[os.Args[1]]()
	command.SetArgs(os.Args[2:])
	command.SilenceUsage, command.SilenceErrors = true, true
	if err := command.Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "controlplane:", err)
		os.Exit(1)
	}
}
