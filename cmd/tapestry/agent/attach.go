package agent

import (
	"context"
	"os"
	"slices"

	"tapestry.dev/tapestry/kube/cni"
)

// serveAttach has pods attached, until ctx is done.
func (a *agent) serveAttach(ctx context.Context) error {
	listener, err := cni.Listen(a.attach)
	if err != nil {
		return err
	}
	server := &cni.Server{
		Attacher: attacher{a}, Allocator: a.pods,
		Options: cni.Options{UIDs: slices.Compact([]uint32{0, uint32(os.Geteuid())}), Log: a.log}, // container runtimes run as root
	}
	return server.Serve(ctx, listener)
}

// attacher is what the attach socket does besides what pods does.
type attacher struct{ a *agent }

var _ cni.Attacher = attacher{}

// Add implements cni.Attacher.
func (t attacher) Add(_ context.Context, pod cni.Pod, f *os.File) error { return t.a.pods.Add(pod, f) }

// Del implements cni.Attacher.
func (t attacher) Del(_ context.Context, pod cni.Pod) error { return t.a.pods.Del(pod) }

// Status implements cni.Attacher. The socket is there once there is a node.
func (attacher) Status(context.Context) (cni.Status, error) { return cni.Status{Ready: true}, nil }
