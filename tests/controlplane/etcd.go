package main

import (
	"fmt"
	"net/url"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/embed"
	"k8s.io/apiserver/pkg/server"
)

// newEtcdCommand returns a single-member etcd. The data of a test cluster is thrown away with it,
// so writes are not synced to disk: an fsync for each write would be the slowest part of the stack.
func newEtcdCommand() *cobra.Command {
	var dataDir, clientURL, peerURL string
	cmd := &cobra.Command{
		Use:   "etcd",
		Short: "Run a single-member etcd without fsync",
		RunE: func(_ *cobra.Command, _ []string) error {
			client, err := url.Parse(clientURL)
			if err != nil {
				return fmt.Errorf("--listen-client-url: %w", err)
			}
			peer, err := url.Parse(peerURL)
			if err != nil {
				return fmt.Errorf("--listen-peer-url: %w", err)
			}
			cfg := embed.NewConfig()
			cfg.Dir = dataDir
			cfg.UnsafeNoFsync = true
			cfg.LogLevel = "warn"
			cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{*client}, []url.URL{*client}
			cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{*peer}, []url.URL{*peer}
			cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
			member, err := embed.StartEtcd(cfg)
			if err != nil {
				return err
			}
			defer member.Close()
			select {
			case <-server.SetupSignalContext().Done():
				return nil
			case err := <-member.Err():
				return err
			}
		},
	}
	cmd.Flags().StringVar(&dataDir, "data-dir", "", "directory of the database")
	cmd.Flags().StringVar(&clientURL, "listen-client-url", "", "URL for the API server")
	cmd.Flags().StringVar(&peerURL, "listen-peer-url", "", "URL for other members; there are none")
	for _, name := range []string{"data-dir", "listen-client-url", "listen-peer-url"} {
		_ = cmd.MarkFlagRequired(name)
	}
	return cmd
}
