package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"slices"
	"sort"

	"github.com/spf13/cobra"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/releaseutil"
)

// newChartCommand returns a command that prints what a Helm chart renders, without a cluster. It
// takes rules and webhooks of cert-manager from cert-manager's own chart, so that nobody copies them.
func newChartCommand() *cobra.Command {
	var directory, release, namespace, values, version string
	cmd := &cobra.Command{
		Use:   "render-chart",
		Short: "Print the manifests of a Helm chart",
		RunE: func(_ *cobra.Command, _ []string) error {
			chart, err := loader.LoadDir(directory)
			if err != nil {
				return err
			}
			given := map[string]any{}
			if err := json.Unmarshal([]byte(values), &given); err != nil {
				return fmt.Errorf("--values: %w", err)
			}
			target, err := chartutil.ParseKubeVersion(version)
			if err != nil {
				return fmt.Errorf("--kube-version: %w", err)
			}
			capabilities := *chartutil.DefaultCapabilities
			capabilities.KubeVersion = *target
			render, err := chartutil.ToRenderValues(chart, given,
				chartutil.ReleaseOptions{Name: release, Namespace: namespace, IsInstall: true},
				&capabilities)
			if err != nil {
				return err
			}
			files, err := engine.Render(chart, render)
			if err != nil {
				return err
			}
			for _, name := range slices.Sorted(maps.Keys(files)) {
				if path.Base(name) == "NOTES.txt" {
					continue
				}
				manifests := releaseutil.SplitManifests(files[name])
				keys := slices.Collect(maps.Keys(manifests))
				sort.Sort(releaseutil.BySplitManifestsOrder(keys))
				for _, key := range keys {
					fmt.Printf("---\n# Source: %s\n%s\n", name, manifests[key])
				}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&directory, "chart", "", "directory of the chart")
	cmd.Flags().StringVar(&release, "release", "", "name of the release")
	cmd.Flags().StringVar(&namespace, "namespace", "", "namespace of the release")
	cmd.Flags().StringVar(&values, "values", "{}", "values of the chart, in JSON")
	cmd.Flags().StringVar(&version, "kube-version", "", "version of Kubernetes, such as v1.36.3")
	for _, name := range []string{"chart", "release", "namespace", "kube-version"} {
		_ = cmd.MarkFlagRequired(name)
	}
	return cmd
}
