package agent

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"tapestry.dev/tapestry/kube/cni"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/tap"
)

func TestAttachByPlugin(t *testing.T) {
	n := newMachine(t)
	n.start()
	n.ready()
	s := n.sandbox("c1", "web")
	s.works("DEL") // an unknown pod
	for range 2 {
		s.works("ADD")
		s.works("CHECK")
		if got := s.addrs(); got != "10.244.1.3/32 fd00:10:244:1::3/128" {
			t.Error(got)
		}
		n.has(1, 1)
	}
	for range 2 {
		s.works("DEL")
		n.has(0, 0)
	}
	if err := s.run("CHECK"); err == nil || !strings.Contains(err.Error(), "not attached") {
		t.Errorf("got %v", err)
	}
	s.works("ADD")
	if got := s.addrs(); got != "10.244.1.4/32 fd00:10:244:1::4/128" { // the first ones are not yet given out again
		t.Error(got)
	}
	s.works("DEL")
}

// The kubelet makes a new sandbox of a pod, and the DEL of the old one comes late.
func TestNextSandbox(t *testing.T) {
	n := newMachine(t)
	n.start()
	n.ready()
	old, next := n.sandbox("c1", "web"), n.sandbox("c2", "web")
	old.works("ADD")
	next.works("ADD")
	n.has(1, 2)
	old.works("DEL")
	n.has(1, 1)
	next.works("CHECK")
	next.works("DEL")
	n.has(0, 0)
}

// A pod is deleted while its ADD runs. The rest of the ADD finds nothing to attach to.
func TestDeletedWhileAdded(t *testing.T) {
	n := newMachine(t)
	n.start()
	n.ready()
	s := n.sandbox("c1", "web")
	p, err := n.client.Prepare(t.Context(), cni.Pod{Namespace: "default", Name: "web", Network: "net", ContainerID: "c1", IfName: "eth0"})
	if err != nil || p.Attached {
		t.Fatal(p, err)
	}
	n.has(0, 1)
	f, err := tap.Create(s.ns, tap.PodConfig(p.Addrs, packet.MAC{0x0a, 0x58, 10, 244, 1, 3}, p.MTU))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s.works("DEL")
	if err := n.client.Add(t.Context(), p.Pod, f); !errors.Is(err, cni.ErrTryLater) || !strings.Contains(err.Error(), "released meanwhile") {
		t.Errorf("got %v", err)
	}
	n.has(0, 0)
	// A pod is not attached with other addresses than it was given, either.
	if p, err = n.client.Prepare(t.Context(), p.Pod); err != nil {
		t.Fatal(err)
	}
	p.Addrs[0] = p.Addrs[0].Next()
	if err := n.client.Add(t.Context(), p.Pod, f); !errors.Is(err, cni.ErrTryLater) {
		t.Errorf("got %v", err)
	}
	n.has(0, 1)
}

// A DEL comes while there is no agent. The next agent finds that the TAP is gone.
func TestDeletedWithoutAgent(t *testing.T) {
	n := newMachine(t)
	n.start()
	n.ready()
	gone, stays := n.sandbox("c1", "gone"), n.sandbox("c2", "stays")
	gone.works("ADD")
	stays.works("ADD")
	n.kill()
	gone.works("DEL")
	if kept := n.kept(); kept != 2 {
		t.Errorf("the keeper has %d pods, want 2", kept)
	}
	gone.extra = `,"patience":0`
	var e *pluginError
	if err := gone.run("ADD"); !errors.As(err, &e) || e.Code != 11 {
		t.Errorf("ADD without an agent: %v", err)
	}
	n.start()
	n.ready()
	n.has(1, 1)
	stays.works("CHECK")
	// Addresses that were released before are still not given out again.
	other := n.sandbox("c3", "other")
	other.works("ADD")
	if got := other.addrs(); got != "10.244.1.5/32 fd00:10:244:1::5/128" {
		t.Error(got)
	}
	if got := n.counters().Get("tapestry_addresses_resting"); got != 2 {
		t.Errorf("%v addresses rest", got)
	}
}

func TestCollect(t *testing.T) {
	n := newMachine(t)
	n.start()
	n.ready()
	var list []*sandbox
	for i := range 4 {
		s := n.sandbox(fmt.Sprint("c", i), fmt.Sprint("p", i))
		s.works("ADD")
		list = append(list, s)
	}
	prepared := cni.Pod{Namespace: "default", Name: "half", Network: "net", ContainerID: "half", IfName: "eth0"}
	if _, err := n.client.Prepare(t.Context(), prepared); err != nil {
		t.Fatal(err)
	}
	n.has(4, 5)
	list[0].extra = `,"cni.dev/valid-attachments":[{"containerID":"c1","ifname":"eth0"},{"containerID":"c2","ifname":"eth1"},{"containerID":"x","ifname":"eth0"}]`
	list[0].works("GC")
	n.has(1, 1)
	list[1].works("CHECK")
	var many strings.Builder
	for i := range 5000 {
		fmt.Fprintf(&many, `{"containerID":"%064d","ifname":"eth0"},`, i)
	}
	list[0].extra = `,"cni.dev/valid-attachments":[` + many.String() + `{"containerID":"c1","ifname":"eth0"}]`
	list[0].works("GC")
	n.has(1, 1)
	// The networks of other runtimes are left alone.
	if err := n.client.Collect(t.Context(), "other", nil); err != nil {
		t.Fatal(err)
	}
	n.has(1, 1)
	list[0].extra = `,"cni.dev/valid-attachments":[]`
	list[0].works("GC")
	n.has(0, 0)
}

func TestFixedAddress(t *testing.T) {
	n := newMachine(t)
	n.manifest("pods.yaml", `
apiVersion: v1
kind: Pod
metadata: {name: db-0, namespace: default, annotations: {tapestry.dev/pod-ips: "10.244.1.77"}}
spec: {nodeName: n1, containers: [{name: c, image: i}]}
`)
	n.start()
	n.ready()
	db, rival := n.sandbox("c1", "db-0"), n.sandbox("c2", "rival")
	rival.extra = `,"runtimeConfig":{"ips":["10.244.1.77"]}`
	for range 2 {
		db.works("ADD")
		if got := db.addrs(); !strings.HasPrefix(got, "10.244.1.77/32 fd00:10:244:1::") {
			t.Error(got)
		}
		var e *pluginError
		if err := rival.run("ADD"); !errors.As(err, &e) || e.Code != 11 || !strings.Contains(e.Msg, "10.244.1.77: is another pod's at the moment") {
			t.Errorf("got %v", err)
		}
		db.works("DEL")
		if err := rival.run("ADD"); !errors.As(err, &e) || e.Code != 11 || !strings.Contains(e.Msg, "10.244.1.77 was another pod's until a moment ago, and rests") {
			t.Errorf("got %v", err)
		}
		// The pod itself has it again at once.
	}
}

func TestRangeChanges(t *testing.T) {
	n := newMachine(t)
	n.start()
	n.ready()
	old := n.sandbox("c1", "old")
	old.works("ADD")
	n.setRange("10.244.7.0/29")
	n.ended()
	n.start()
	n.ready()
	n.has(1, 1)
	next := n.sandbox("c2", "next")
	next.works("ADD")
	if got := next.addrs(); got != "10.244.7.3/32" {
		t.Error(got)
	}
	if got := n.problems(); !strings.Contains(got, "default/old: its address 10.244.1.3 is from before") {
		t.Error(got)
	}
	old.works("CHECK")
	old.works("DEL")
	next.works("DEL")
	n.has(0, 0)
	// The range has four addresses, and some of them were released too recently.
	var e *pluginError
	for i := range 5 {
		if err := n.sandbox(fmt.Sprint("f", i), fmt.Sprint("f", i)).run("ADD"); errors.As(err, &e) {
			break
		}
	}
	if e == nil || e.Code != 11 || !strings.Contains(e.Msg, "no address of 10.244.7.0/29 is free") {
		t.Errorf("got %v", e)
	}
}

// ADDs go on while agents come and go. In the end every pod is attached, no two have the same address, and nothing is
// left over.
func TestAddOverRestarts(t *testing.T) {
	rounds := 50
	if testing.Short() {
		rounds = 5
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	n := newMachine(t)
	n.start()
	n.ready()
	owner := map[string]string{}
	var live []*sandbox
	for i := range rounds {
		// The agent is killed at some time during the ADD.
		delay := time.Duration(random.IntN(40)) * time.Millisecond
		s := n.sandbox(fmt.Sprint("c", i), fmt.Sprint("p", i))
		s.extra = `,"patience":60`
		done := make(chan error, 1)
		go func() { done <- s.run("ADD") }()
		time.Sleep(delay)
		n.kill()
		n.start()
		if err := <-done; err != nil {
			t.Fatalf("round %d, killed after %s: %v", i, delay, err)
		}
		if was := owner[s.addrs()]; was != "" {
			t.Errorf("round %d: %s gets the addresses of %s: %s", i, s.container, was, s.addrs())
		}
		owner[s.addrs()] = s.container
		live = append(live, s)
		if i%3 == 2 { // a DEL as well, which may find no agent
			gone := live[0]
			live = live[1:]
			gone.works("DEL")
		}
	}
	n.ready()
	// If a DEL found no agent, the review finds the pod's end later, and GC finds it at once.
	var valid []string
	for _, s := range live {
		valid = append(valid, fmt.Sprintf(`{"containerID":%q,"ifname":"eth0"}`, s.container))
	}
	live[0].extra = `,"cni.dev/valid-attachments":[` + strings.Join(valid, ",") + `]`
	live[0].works("GC")
	n.has(len(live), len(live))
	for _, s := range live {
		s.works("CHECK")
		s.works("DEL")
	}
	n.has(0, 0)
}

// A hundred pods come and go, and nothing is left over.
func TestNoLeak(t *testing.T) {
	n := newMachine(t)
	n.start()
	n.ready()
	n.has(0, 0)
	var before float64
	for round := range 3 {
		var list []*sandbox
		for i := range 20 {
			s := n.sandbox(fmt.Sprintf("c%d-%d", round, i), fmt.Sprint("p", i))
			s.works("ADD")
			list = append(list, s)
		}
		n.has(20, 20)
		for _, s := range list {
			s.works("DEL")
			s.ns.Close()
		}
		n.has(0, 0)
		after := n.counters().Get("go_goroutines")
		if round == 0 {
			before = after
			continue
		}
		if after > before+5 {
			t.Errorf("round %d: %v goroutines, and %v before", round, after, before)
		}
	}
}
