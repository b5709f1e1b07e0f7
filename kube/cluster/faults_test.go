package cluster

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/cluster/clustertest"
	"tapestry.dev/tapestry/test/await"
)

// While the server is gone, only State changes. When the server is back, the changes made meanwhile are delivered,
// and unchanged objects keep their pointers.
func TestServerGone(t *testing.T) {
	both(t, func(t *testing.T, s *clustertest.Server) {
		s.Put(service("a"), service("b"), node("n1"))
		v := see(t, s)
		before := v.untilNames("Node n1, x/a, x/b")
		await.Until(t, "all watches are open", func() bool { return v.State().Age == 0 })
		s.Stop()
		await.Until(t, "age", func() bool { h := v.State(); return h.Age > 0 && h.Err != nil && h.Synced })
		age := v.State().Age
		await.Until(t, "more age", func() bool { return v.State().Age > age })
		s.Put(service("c"))
		s.Delete(service("b"))
		s.Compact()
		count := v.count()
		s.Start()
		after := v.untilNames("Node n1, x/a, x/c")
		if before.Services[0] != after.Services[0] || before.Nodes[0] != after.Nodes[0] {
			t.Error("what has not changed is not the same any more")
		}
		if n := v.count() - count; n != 1 {
			t.Errorf("%d snapshots since", n)
		}
		await.Until(t, "no age", func() bool { return v.State().Age == 0 })
	})
}

// A server that runs but is not ready gets no requests yet.
func TestServerNotReady(t *testing.T) {
	t.Parallel()
	s := clustertest.New(t)
	s.SetReady(false)
	s.Put(service("a"))
	v := see(t, s)
	await.Until(t, "an error", func() bool { return v.State().Err != nil })
	if requests := s.Requests(); len(requests) > 0 {
		t.Errorf("requests %q", requests)
	}
	if waiting := v.State().Waiting; len(waiting) != 1 || waiting[0] != "an API server" {
		t.Errorf("waiting for %q", waiting)
	}
	s.SetReady(true)
	v.untilNames("x/a")
}

// The second server takes over when the first is gone, and no change is lost.
func TestFailover(t *testing.T) {
	t.Parallel()
	first, second := clustertest.New(t), clustertest.New(t)
	for _, s := range []*clustertest.Server{first, second} {
		s.Put(service("a"))
	}
	v := see(t, first, func(o *Options) { o.Servers = []string{first.URL, second.URL} })
	v.untilNames("x/a")
	first.Stop()
	second.Put(service("b"))
	v.untilNames("x/a, x/b")
	if got := v.State().Server; "http://"+got != second.URL {
		t.Errorf("the server is %s", got)
	}
}

// The server has forgotten the history from which a watch wants to continue (410 Gone).
func TestCompacted(t *testing.T) {
	both(t, func(t *testing.T, s *clustertest.Server) {
		s.Put(service("a"))
		v := see(t, s)
		v.untilNames("x/a")
		s.Stop()
		s.Put(service("b"))
		s.Compact()
		s.Put(service("c"))
		s.Start()
		v.untilNames("x/a, x/b, x/c")
	})
}

// etcd was restored: versions go back, later objects are gone, and the server does not tell watchers whose version
// lies in the future.
func TestRestored(t *testing.T) {
	both(t, func(t *testing.T, s *clustertest.Server) {
		s.Put(service("a"), service("b"), node("n1"))
		old := s.Save()
		v := see(t, s)
		v.untilNames("Node n1, x/a, x/b") // client-go lists again after a watch without an event in its first second
		s.Put(node("n1"), service("c"))
		changed := service("b")
		changed.Spec.Ports[0].Port = 81
		s.Put(changed)
		before := v.until("all", func(objs *kube.Objects, _ []kube.Problem) bool {
			return names(objs) == "Node n1, x/a, x/b, x/c" && objs.Services[1].Spec.Ports[0].Port == 81
		})
		s.Restore(old)
		after := v.until("what was", func(objs *kube.Objects, _ []kube.Problem) bool {
			return names(objs) == "Node n1, x/a, x/b" && objs.Services[1].Spec.Ports[0].Port == 80
		})
		if before.Services[0] != after.Services[0] || before.Nodes[0] != after.Nodes[0] {
			t.Error("what has not changed is not the same any more")
		}
		s.Put(service("d"))
		v.untilNames("Node n1, x/a, x/b, x/d")
	})
}

// A watch that the server ends normally is continued without a list.
func TestWatchesEnd(t *testing.T) {
	t.Parallel()
	s := clustertest.New(t)
	s.Put(service("a"))
	v := see(t, s)
	v.untilNames("x/a")
	s.Put(service("b"))
	v.untilNames("x/a, x/b")
	s.Requests()
	s.CutWatches()
	s.Put(service("c"))
	v.untilNames("x/a, x/b, x/c")
	requests := s.Requests()
	if !slices.Contains(requests, "GET services version") {
		t.Error("nobody has looked whether the server's history went back")
	}
	if slices.Contains(requests, "GET services list") {
		t.Error("everything was listed again")
	}
}

// While this node's Node is gone, its last version is used.
func TestOwnNodeGone(t *testing.T) {
	t.Parallel()
	s := clustertest.New(t)
	s.Put(node("n0"), node("n1"), node("n2"))
	v := see(t, s)
	before := v.untilNames("Node n0, Node n1, Node n2")
	gone := func(problems []kube.Problem) bool {
		return len(problems) == 1 && problems[0].Object.String() == "Node n1" && strings.Contains(problems[0].Message, "is gone")
	}
	s.Delete(node("n1"))
	v.until("a problem", func(objs *kube.Objects, problems []kube.Problem) bool {
		return gone(problems) && names(objs) == "Node n0, Node n1, Node n2" && objs.Nodes[1] == before.Nodes[1]
	})
	thief := node("n2") // nobody else gets this node's range meanwhile
	thief.Spec.PodCIDRs = []string{"10.244.1.0/24"}
	s.Put(thief)
	v.until("it stays this node's", func(objs *kube.Objects, problems []kube.Problem) bool {
		return len(problems) == 2 && objs.Nodes[1] == before.Nodes[1] && len(objs.Nodes[2].Spec.PodCIDRs) == 0
	})
	s.Put(node("n2"))
	v.until("the thief gave up", func(_ *kube.Objects, problems []kube.Problem) bool { return gone(problems) })
	fresh := node("n1")
	fresh.Spec.PodCIDRs = nil
	s.Put(fresh)
	s.Delete(node("n0"))
	v.until("still", func(objs *kube.Objects, problems []kube.Problem) bool {
		return gone(problems) && names(objs) == "Node n1, Node n2" && objs.Nodes[0] == before.Nodes[1]
	})
	fresh.Spec.PodCIDRs = []string{"10.244.9.0/24"}
	s.Put(fresh)
	v.until("the new range", func(objs *kube.Objects, problems []kube.Problem) bool {
		return len(problems) == 0 && objs.Nodes[0].Spec.PodCIDRs[0] == "10.244.9.0/24"
	})
}

// A slow receiver gets fewer snapshots, and always the latest.
func TestSlowReceiver(t *testing.T) {
	t.Parallel()
	s := clustertest.New(t)
	s.Put(service("a"))
	c, err := New(Options{Node: "n1", Kubeconfig: s.Kubeconfig(), State: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	entered, leave, last := make(chan int), make(chan struct{}), atomic.Int64{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = c.Run(ctx, func(objs kube.Objects, _ []kube.Problem) {
			last.Store(int64(len(objs.Services)))
			select {
			case entered <- len(objs.Services):
				<-leave
			case <-ctx.Done():
			}
		})
	}()
	<-entered
	for _, name := range []string{"b", "c", "d"} {
		s.Put(service(name))
	}
	await.Until(t, "the store has them", func() bool { list, _ := storeOf[*corev1.Service](c).snapshot(); return list.Len() == 4 })
	leave <- struct{}{}
	if n := <-entered; n != 4 {
		t.Errorf("the second snapshot has %d Services, want 4", n)
	}
	leave <- struct{}{}
	cancel()
	<-done
}

func TestNewRefuses(t *testing.T) {
	s := clustertest.New(t)
	for _, tc := range []struct {
		change func(*Options)
		want   string
	}{
		{func(o *Options) { o.Kubeconfig = "absent" }, "kubeconfig absent"},
		{func(o *Options) { o.Servers = []string{"10.0.0.1"} }, "expected one like https://10.0.0.1:6443"},
		{func(o *Options) { o.Kubeconfig, o.Credentials = "", t.TempDir() }, "or name a kubeconfig"},
	} {
		o := Options{Node: "n1", Kubeconfig: s.Kubeconfig(), State: t.TempDir()}
		tc.change(&o)
		if _, err := New(o); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("got %v, want %q", err, tc.want)
		}
	}
}
