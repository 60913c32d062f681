package main

import (
	"fmt"
	"time"

	"github.com/cert-manager/cert-manager/pkg/controller"
	// The controllers register themselves when imported.
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
	"github.com/spf13/cobra"
	"k8s.io/apiserver/pkg/server"
)

// newCertManagerCommand returns cert-manager's controllers for CA and self-signed issuers.
//
// Its webhook is not part of it, so approval is not checked against RBAC and requests are not
// immutable: tests of those need a cluster. Requests are approved as approve says.
func newCertManagerCommand() *cobra.Command {
	var kubeconfig string
	var approveSigners []string
	cmd := &cobra.Command{
		Use:   "cert-manager",
		Short: "Run cert-manager's controllers",
		RunE: func(_ *cobra.Command, _ []string) error {
			ctx := server.SetupSignalContext()
			factory, err := controller.NewContextFactory(ctx, controller.ContextOptions{
				Kubeconfig:         kubeconfig,
				KubernetesAPIQPS:   100,
				KubernetesAPIBurst: 200,
				IssuerOptions: controller.IssuerOptions{
					ClusterResourceNamespace: "cert-manager",
				},
				CertificateOptions: controller.CertificateOptions{
					CertificateRequestMinimumBackoffDuration: time.Second,
				},
			})
			if err != nil {
				return err
			}
			root, err := factory.Build()
			if err != nil {
				return err
			}
			if err := approve(ctx, root, approveSigners); err != nil {
				return err
			}
			failed := make(chan error)
			for name, construct := range controller.Known() {
				run, err := construct(factory)
				if err != nil {
					return fmt.Errorf("controller %s: %w", name, err)
				}
				go func() {
					if err := run.Run(2, ctx); err != nil {
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
	cmd.Flags().StringSliceVar(&approveSigners, "approve-signer-names", nil,
		"signers to approve, such as clusterissuers.cert-manager.io/NAME; * matches any name")
	_ = cmd.MarkFlagRequired("kubeconfig")
	return cmd
}
