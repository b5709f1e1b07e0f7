package cluster

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/cluster/connect"
)

// readTimeout limits the time that the API server may take for one object.
const readTimeout = 10 * time.Second

// NodeReader returns a function that reads this node's Node from the API server, as a snapshot with nothing else in
// it. It is for a step that runs before the agent. NodeReader fails when the options cannot be used.
func NodeReader(o Options) (func(context.Context) (kube.Objects, error), error) {
	to, err := connect.To(o.connection())
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) (kube.Objects, error) {
		ctx, cancel := context.WithTimeout(ctx, readTimeout)
		defer cancel()
		n := &corev1.Node{}
		if err := to.Rest.Get().Resource("nodes").Name(o.Node).Do(ctx).Into(n); err != nil {
			return kube.Objects{}, fmt.Errorf("read Node %s: %w", o.Node, err)
		}
		return kube.Objects{Nodes: []*corev1.Node{n}}, nil
	}, nil
}
