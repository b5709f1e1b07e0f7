package follow

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"tapestry.dev/tapestry/cmd/tapestry/health"
	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/manifests"
	"tapestry.dev/tapestry/kube/pods"
	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/poll"
	"tapestry.dev/tapestry/node"
	"tapestry.dev/tapestry/overlay"
	"tapestry.dev/tapestry/overlay/overlaytest"
	"tapestry.dev/tapestry/test/await"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// source is a directory of manifests that records what the Follower publishes.
type source struct {
	*manifests.Directory
	dir string

	mu          sync.Mutex
	status      kube.NodeStatus
	shared, own []kube.Problem
}

func (s *source) Publish(status kube.NodeStatus) {
	s.mu.Lock()
	s.status = status
	s.mu.Unlock()
}

func (s *source) Urgent() <-chan struct{} { return nil }

func (s *source) Report(_ *kube.Objects, shared, own []kube.Problem) {
	s.mu.Lock()
	s.shared, s.own = shared, own
	s.mu.Unlock()
}

func (s *source) told() (kube.NodeStatus, []kube.Problem) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status, s.shared
}

// write replaces the one file of the directory.
func (s *source) write(t *testing.T, text string) {
	t.Helper()
	hidden := filepath.Join(s.dir, ".new")
	if err := os.WriteFile(hidden, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(hidden, filepath.Join(s.dir, "all.yaml")); err != nil {
		t.Fatal(err)
	}
}

// letGo is a keeper that keeps nothing.
type letGo struct{}

func (letGo) Put(string, json.RawMessage, *os.File) error { return nil }
func (letGo) Delete(string) error                         { return nil }

// newFollower returns a Follower of node n1 with a directory as its source.
func newFollower(t testing.TB) (*Follower, *source) {
	t.Helper()
	dir, u := t.TempDir(), overlaytest.New(1)
	t.Cleanup(u.Close)
	poller, err := poll.New(1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = poller.Close() })
	flows, err := flow.Open(make([]byte, flow.Size(64)), flow.Options{})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	var f *Follower
	registry, err := pods.New(pods.Options{
		Journal: filepath.Join(t.TempDir(), "addresses"), Keeper: letGo{}, Now: time.Now, Log: log, Changed: func() { f.Remap() },
		Fixed: func(context.Context, string, string) (string, error) { return "", nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = registry.Close() })
	s := &source{Directory: manifests.NewDirectory(dir, log), dir: dir}
	f = New(Options{
		Node: "n1", Source: s, Pods: registry, UnderlayMTU: 1500, Features: []string{"f"}, Progress: health.NewProgress(), Log: log,
		Ailing: func() ([]kube.Problem, string) { return nil, "" },
		Held: node.Held{
			Flows: flows, Key: overlay.NewPrivateKey(), Bind: u.Bind(netip.MustParseAddrPort("192.0.2.1:51820")), Poller: poller,
			Upstreams: func() ([]netip.AddrPort, error) { return nil, nil },
		},
	})
	return f, s
}

func nodeYAML(podCIDRs string) string {
	return fmt.Sprintf("{apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {podCIDRs: [%s]}, status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}}\n", podCIDRs)
}

// TestFollow follows the life of a node. The node waits for a podCIDR, starts with it, publishes that it works after a
// packet has passed through, reports problems with objects, and ends when its range changes.
func TestFollow(t *testing.T) {
	f, s := newFollower(t)
	defer f.Close()
	s.write(t, nodeYAML(""))
	ctx, cancel := context.WithTimeout(t.Context(), await.Patience)
	defer cancel()
	applied, ended := make(chan struct{}, 1), make(chan error, 1)
	go func() { ended <- f.Run(ctx, applied) }()
	defer cancel()

	f.await(t, applied, "the first snapshot", func() bool { return true })
	if f.HasStarted() || f.Node() != nil {
		t.Error("there is a node without a podCIDR")
	}
	s.write(t, nodeYAML("10.244.1.0/24"))
	f.await(t, applied, "it is started", f.HasStarted)
	status, _ := s.told()
	if status.Name != "n1" || status.Ready || status.PublicKey == "" || status.Features[0] != "f" || len(status.Addrs) != 1 {
		t.Errorf("of the node it is said: %+v", status)
	}
	if err := f.Announce(ctx); err != nil {
		t.Error(err)
	}
	if status, _ = s.told(); !status.Ready || status.Reason != "" {
		t.Errorf("of a node that works it is said: %+v", status)
	}

	s.write(t, nodeYAML("10.244.1.0/24")+"---\n{apiVersion: v1, kind: Service, metadata: {namespace: default, name: lost}, spec: {ports: [{port: 80}]}}\n")
	f.await(t, applied, "what is wrong is told", func() bool {
		_, shared := s.told()
		return len(shared) == 1 && strings.HasPrefix(shared[0].Object.String(), "Service default/lost")
	})
	if shared, own := f.Problems(); len(shared) != 1 || len(own) != 0 {
		t.Errorf("problems are %v and %v", shared, own)
	}

	was := f.Node().Config()
	s.write(t, nodeYAML("10.244.9.0/24"))
	for running := true; running; {
		select {
		case <-applied:
		case err := <-ended:
			running = false
			if !errors.Is(err, node.ErrStartAnew) {
				t.Errorf("it ended with %v", err)
			}
		}
	}
	if f.Node().Config() != was {
		t.Errorf("the node was brought to %v", f.Node().Config().Netstack.PodCIDRs)
	}
}

// await waits for a snapshot after which so returns true.
func (f *Follower) await(t *testing.T, applied <-chan struct{}, what string, so func() bool) {
	t.Helper()
	limit := time.After(await.Patience)
	for {
		select {
		case <-applied:
		case <-limit:
			t.Fatalf("waited in vain until %s", what)
		}
		if so() {
			return
		}
	}
}

// A node that cannot start is tried again with every snapshot, and leaves nothing behind. TestMain finds what is left.
func TestNotStarted(t *testing.T) {
	f, s := newFollower(t)
	defer f.Close()
	f.o.Held.Flows = nil
	s.write(t, nodeYAML("10.244.1.0/24"))
	ctx, cancel := context.WithTimeout(t.Context(), await.Patience)
	defer cancel()
	applied, ended := make(chan struct{}, 1), make(chan error, 1)
	go func() { ended <- f.Run(ctx, applied) }()
	for i := range 3 {
		f.await(t, applied, "a snapshot", func() bool { return true })
		s.write(t, nodeYAML("10.244.1.0/24")+fmt.Sprintf("---\n{apiVersion: v1, kind: Namespace, metadata: {name: ns-%d}}\n", i))
	}
	cancel()
	for running := true; running; {
		select {
		case <-applied:
		case <-ended:
			running = false
		}
	}
	if f.HasStarted() || f.o.Progress.Counters().Get("tapestry_sync_failures_total") < 3 {
		t.Errorf("started %v, %v failures", f.HasStarted(), f.o.Progress.Counters().Get("tapestry_sync_failures_total"))
	}
}

func TestObjectOf(t *testing.T) {
	for text, want := range map[string]kube.Ref{
		"Service default/web": {Kind: "Service", Namespace: "default", Name: "web"}, "Node n1": {Kind: "Node", Name: "n1"},
	} {
		if got := objectOf(text); got != want {
			t.Errorf("%s: %+v", text, got)
		}
	}
}
