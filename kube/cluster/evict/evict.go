// Package evict asks an API server to evict pods, as a drain of a node does.
package evict

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/cluster/servers"
)

// ErrBudget says that a PodDisruptionBudget does not allow the eviction now.
var ErrBudget = errors.New("a PodDisruptionBudget does not allow it now")

// Evictor evicts pods.
type Evictor struct {
	Rest rest.Interface
	Link *servers.Link
}

// Evict has the pod with this UID deleted, unless a PodDisruptionBudget needs it: the error wraps ErrBudget then. A pod
// that is gone already, or made anew with another UID, is no error.
func (e *Evictor) Evict(ctx context.Context, pod kube.Ref, uid string) error {
	id := types.UID(uid)
	body, err := json.Marshal(&policyv1.Eviction{
		TypeMeta:      metav1.TypeMeta{APIVersion: policyv1.SchemeGroupVersion.String(), Kind: "Eviction"},
		ObjectMeta:    metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name},
		DeleteOptions: &metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &id}},
	})
	if err != nil {
		return err
	}
	err = e.Link.Do(ctx, func() error {
		return e.Rest.Post().AbsPath("/api/v1/namespaces/"+pod.Namespace, "pods", pod.Name, "eviction").
			SetHeader("Content-Type", "application/json").MaxRetries(0).Body(body).Do(ctx).Error()
	})
	switch {
	case apierrors.IsTooManyRequests(err):
		err = fmt.Errorf("%w: %w", ErrBudget, err)
	case apierrors.IsNotFound(err), apierrors.IsConflict(err):
		return nil
	}
	if err != nil {
		return fmt.Errorf("evict pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return nil
}
