package cni

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
)

// allocator answers with what a test has set.
type allocator struct {
	mu      sync.Mutex
	err     error
	network string
	valid   []Attachment
	asked   Pod
}

func (a *allocator) Prepare(_ context.Context, want Pod) (Prepared, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked = want
	want.Addrs, want.MAC, want.MTU = []netip.Addr{netip.MustParseAddr("10.1.0.3")}, "02:00:00:00:00:01", 1400
	return Prepared{want, true}, a.err
}

func (a *allocator) Check(_ context.Context, pod Pod) (Pod, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return pod, a.err
}

func (a *allocator) Collect(_ context.Context, network string, valid []Attachment) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.network, a.valid = network, valid
	return a.err
}

func TestAllocator(t *testing.T) {
	a := &allocator{}
	path := filepath.Join(t.TempDir(), "cni")
	ln, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- (&Server{Attacher: newAgent(), Allocator: a}).Serve(ctx, ln) }()
	stop := func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	}
	c := &Client{Path: path}
	p := Pod{
		Namespace: "default", Name: "web", ContainerID: "c1", IfName: "eth0", Network: "net", Netns: "/run/netns/x",
		PortMappings: []PortMapping{{HostPort: 80, ContainerPort: 8080, Protocol: "tcp"}}, Bandwidth: &Bandwidth{EgressRate: 1000},
	}
	got, err := c.Prepare(t.Context(), p)
	if err != nil || !got.Attached || got.MTU != 1400 || got.Addrs[0].String() != "10.1.0.3" || got.Name != "web" {
		t.Errorf("%+v, %v", got, err)
	}
	a.mu.Lock()
	if !reflect.DeepEqual(a.asked, p) {
		t.Errorf("asked %+v, want %+v", a.asked, p)
	}
	a.mu.Unlock()
	if got, err := c.Check(t.Context(), p); err != nil || !reflect.DeepEqual(got, p) {
		t.Errorf("%+v, %v", got, err)
	}
	valid := []Attachment{{"c1", "eth0"}}
	if err := c.Collect(t.Context(), "net", valid); err != nil {
		t.Error(err)
	}
	a.mu.Lock()
	if a.network != "net" || !reflect.DeepEqual(a.valid, valid) {
		t.Errorf("collected %s but %v", a.network, a.valid)
	}
	a.mu.Unlock()
	// Collect as many attachments as there may be, with names as long as any runtime uses, or with names that are
	// longer in JSON.
	for name, id := range map[string]string{"long": strings.Repeat("0123456789abcdef", 4), "escaped": strings.Repeat("<\x01", 32)} {
		many := make([]Attachment, 5000)
		for i := range many {
			many[i] = Attachment{fmt.Sprint(id, i), "eth0"}
		}
		if err := c.Collect(t.Context(), "net", many); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		a.mu.Lock()
		if a.network != "net" || !reflect.DeepEqual(a.valid, many) {
			t.Errorf("%s: collected %s but %d attachments", name, a.network, len(a.valid))
		}
		a.mu.Unlock()
	}
	// Attachments sent ahead on one connection are unknown to the others, and belong to one network.
	conn, err := c.dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, tc := range []struct {
		r    request
		want string
	}{
		{request{Op: opValid, Network: "net", Valid: valid}, ""},
		{request{Op: opCollect, Network: "other"}, `network "other" was named, and "net" before`},
		{request{Op: opCollect, Network: "other"}, ""}, // the attachments sent before the error no longer count
	} {
		if _, err := exchange(t.Context(), conn, tc.r); (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s of %s: got %v, want %q", tc.r.Op, tc.r.Network, err, tc.want)
		}
	}
	a.mu.Lock()
	if a.network != "other" || len(a.valid) != 0 {
		t.Errorf("collected %s but %v", a.network, a.valid)
	}
	a.mu.Unlock()
	// An error wraps the same error in the client as in the agent.
	for _, kind := range []error{ErrTryLater, ErrNotAttached} {
		failure := fmt.Errorf("%w: so it is", kind)
		a.mu.Lock()
		a.err = failure
		a.mu.Unlock()
		_, err := c.Prepare(t.Context(), p)
		if want := "prepare pod default/web: " + failure.Error(); !errors.Is(err, kind) || err.Error() != want || errors.Is(err, ErrUnavailable) {
			t.Errorf("got %v, want %s", err, want)
		}
		if _, err := c.Check(t.Context(), p); !errors.Is(err, kind) {
			t.Errorf("got %v", err)
		}
		if err := c.Collect(t.Context(), "net", nil); !errors.Is(err, kind) {
			t.Errorf("got %v", err)
		}
	}
	for name, spoil := range map[string]func(*Pod){
		"needs a namespace and a name": func(p *Pod) { p.Name = "" },
		"needs a network":              func(p *Pod) { p.Network = "" },
		"a container":                  func(p *Pod) { p.ContainerID = "" },
		"name of an interface":         func(p *Pod) { p.IfName = "" },
	} {
		bad := p
		spoil(&bad)
		if _, err := c.Prepare(t.Context(), bad); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("got %v, want %q", err, name)
		}
	}
	if err := c.Collect(t.Context(), "", nil); err == nil || !strings.Contains(err.Error(), "no network was named") {
		t.Errorf("got %v", err)
	}
	stop()
	if _, err := c.Prepare(t.Context(), p); !errors.Is(err, ErrUnavailable) {
		t.Errorf("got %v", err)
	}
}
