package agent

import (
	"context"
	"net"
	"os"
	"slices"

	"tapestry.dev/tapestry/cmd/tapestry/agent/recall"
	"tapestry.dev/tapestry/kube/cni"
	"tapestry.dev/tapestry/kube/pods"
	"tapestry.dev/tapestry/localapi"
	"tapestry.dev/tapestry/share/descriptors"
)

// serveHTTP serves on a host address until ctx ends. If the address is taken, it logs advice and returns; the rest of
// the agent goes on.
func (a *agent) serveHTTP(ctx context.Context, addr string, serve func(context.Context, net.Listener) error, advice string) {
	if addr == "" {
		return
	}
	l, err := net.Listen("tcp", addr)
	if err == nil {
		err = serve(ctx, l)
	}
	if err != nil && ctx.Err() == nil {
		a.log.Error(advice, "err", err)
	}
}

// The log messages for addresses and sockets that cannot be opened.
const (
	adviceHealth  = "health is not served on this node; stop kube-proxy if it still runs here, or choose another address with --health-address"
	adviceMetrics = "metrics are not served on this node; stop kube-proxy if it still runs here, or choose another address with --metrics-address"
	adviceLocal   = "tapestry status and doctor cannot ask this agent; choose another socket with --local-api"
)

// serveLocalAPI serves the local API until ctx is done. If the socket cannot be opened, only the local API is missing.
func (a *agent) serveLocalAPI(ctx context.Context) {
	if a.localAPI == "" {
		return
	}
	o := localapi.Options{UIDs: append([]uint32{0, uint32(os.Geteuid())}, a.localAPIUIDs...), Most: a.plan.Of(descriptors.Local), Log: a.log}
	l, err := localapi.Listen(a.localAPI, o)
	if err == nil {
		err = a.teller.Server(o).Serve(ctx, l)
	}
	if err != nil && ctx.Err() == nil {
		a.log.Error(adviceLocal, "err", err)
	}
}

// recall returns what reads the flow log; nil if there is none.
func (a *agent) recall() *recall.Source {
	if a.held.FlowLog == nil {
		return nil
	}
	return recall.New(recall.Options{Node: a.node, Log: a.held.FlowLog, Objects: a.follower.Objects, Network: func() recall.Network {
		if !a.follower.HasStarted() {
			return nil
		}
		return a.follower.Node()
	}})
}

// serveAttach serves the socket for attaching pods until ctx is done.
func (a *agent) serveAttach(ctx context.Context) error {
	listener, err := cni.Listen(a.attach)
	if err != nil {
		return err
	}
	server := &cni.Server{
		Attacher: attacher{a.pods}, Allocator: a.pods,
		// Container runtimes run as root.
		Options: cni.Options{UIDs: slices.Compact([]uint32{0, uint32(os.Geteuid())}), Most: a.plan.Of(descriptors.Local), Log: a.log},
	}
	return server.Serve(ctx, listener)
}

// attacher implements the attach socket. It exists only once there is a node.
type attacher struct{ *pods.Registry }

var _ cni.Attacher = attacher{}

// Add implements cni.Attacher.
func (t attacher) Add(_ context.Context, pod cni.Pod, f *os.File) error {
	return t.Registry.Add(pod, f)
}

// Del implements cni.Attacher.
func (t attacher) Del(_ context.Context, pod cni.Pod) error { return t.Registry.Del(pod) }

// Status implements cni.Attacher.
func (attacher) Status(context.Context) (cni.Status, error) { return cni.Status{Ready: true}, nil }
