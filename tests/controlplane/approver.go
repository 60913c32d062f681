package main

import (
	"context"
	"fmt"
	"os"
	"path"
	"strings"

	apiutil "github.com/cert-manager/cert-manager/pkg/api/util"
	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	"github.com/cert-manager/cert-manager/pkg/controller"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
)

// approve approves requests of the named signers and leaves all others to somebody else.
//
// cert-manager's own approver says yes to every request; its option approveSignerNames works through
// RBAC that the webhook checks, and the webhook is not part of this control plane.
func approve(ctx context.Context, root *controller.Context, signers []string) error {
	decide := func(object any) {
		request, ok := object.(*cmapi.CertificateRequest)
		if !ok || !signedBy(request, signers) ||
			apiutil.CertificateRequestIsApproved(request) || apiutil.CertificateRequestIsDenied(request) {
			return
		}
		request = request.DeepCopy()
		apiutil.SetCertificateRequestCondition(request, cmapi.CertificateRequestConditionApproved,
			cmmeta.ConditionTrue, "controlplane", "the signer is on the list of --approve-signer-names")
		_, err := root.CMClient.CertmanagerV1().CertificateRequests(request.Namespace).
			UpdateStatus(ctx, request, metav1.UpdateOptions{})
		// A conflict or a deletion brings another event, which decides again.
		if err != nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
			fmt.Fprintf(os.Stderr, "approve %s/%s: %v\n", request.Namespace, request.Name, err)
		}
	}
	_, err := root.SharedInformerFactory.Certmanager().V1().CertificateRequests().Informer().
		AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc:    decide,
			UpdateFunc: func(_, now any) { decide(now) },
		})
	return err
}

func signedBy(request *cmapi.CertificateRequest, signers []string) bool {
	issuer := request.Spec.IssuerRef
	name := strings.ToLower(issuer.Kind) + "s.cert-manager.io/" + issuer.Name
	for _, signer := range signers {
		if matched, err := path.Match(signer, name); err == nil && matched {
			return true
		}
	}
	return false
}
