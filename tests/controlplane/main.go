// Command controlplane is Kubernetes in one binary: each program of it, etcd and cert-manager the real
// one, linked as a library, so that a machine compiles them once.
//
// Its sub-commands are a control plane without nodes; they take the flags of the component they are
// named after, so that everything said in the components' own documentation holds. tests/stack
// starts one process for each. Under a link with the name of a program it is that program: kubectl
// anywhere, and all that runs on the node and in the pods of the cluster of tests/kind.
package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
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
	if program := programs[filepath.Base(os.Args[0])]; program != nil {
		program()
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
