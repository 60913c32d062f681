// Kstatus reads a JSON array of Kubernetes objects from stdin and writes, as a JSON array of
// strings, the status that kstatus computes of each: what Flux and kubectl's apply tools go by.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	var objects []json.RawMessage
	if err := json.NewDecoder(os.Stdin).Decode(&objects); err != nil {
		return err
	}
	statuses := make([]string, 0, len(objects))
	for _, body := range objects {
		var object unstructured.Unstructured
		if err := object.UnmarshalJSON(body); err != nil {
			return err
		}
		result, err := status.Compute(&object)
		if err != nil {
			return err
		}
		statuses = append(statuses, result.Status.String())
	}
	return json.NewEncoder(os.Stdout).Encode(statuses)
}
