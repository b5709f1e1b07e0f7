package cni

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/fdpass"
	"tapestry.dev/tapestry/test/await"
)

// agent is an Attacher that remembers what it was asked.
type agent struct {
	mu     sync.Mutex
	pods   map[string]Pod
	taps   map[string]*os.File
	status Status
	err    error
}

func newAgent() *agent { return &agent{pods: map[string]Pod{}, taps: map[string]*os.File{}} }

func (a *agent) Add(_ context.Context, p Pod, tap *os.File) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err != nil {
		return a.err
	}
	a.pods[p.String()], a.taps[p.String()] = p, tap
	return nil
}

func (a *agent) Del(_ context.Context, p Pod) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err != nil {
		return a.err
	}
	delete(a.pods, p.String())
	if tap := a.taps[p.String()]; tap != nil {
		tap.Close()
	}
	delete(a.taps, p.String())
	return nil
}

func (a *agent) Status(context.Context) (Status, error) { return a.status, a.err }

func (a *agent) get(name string) (Pod, *os.File) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.pods[name], a.taps[name]
}

func (a *agent) len() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.pods)
}

func start(t *testing.T, a Attacher, o Options) *Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "cni")
	ln, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- (&Server{Attacher: a, Options: o}).Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return &Client{Path: path}
}

func pod() Pod {
	return Pod{
		Namespace: "default", Name: "web", UID: "u1", ContainerID: "c1",
		Addrs: []netip.Addr{netip.MustParseAddr("10.244.1.5"), netip.MustParseAddr("fd00:1::5")},
		MAC:   "02:00:0a:f4:01:05", MTU: 1400,
	}
}

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

// closed asserts that the other end of the pipe is closed.
func closed(t *testing.T, r *os.File) {
	t.Helper()
	r.SetReadDeadline(time.Now().Add(await.Patience))
	if _, err := r.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the descriptor is not closed: %v", err)
	}
}

func TestAddDelStatus(t *testing.T) {
	a := newAgent()
	a.status = Status{Reason: "there is no node yet"}
	c := start(t, a, Options{})
	if st, err := c.Status(t.Context()); err != nil || st != a.status {
		t.Errorf("status %+v, %v", st, err)
	}
	r, w := pipe(t)
	p := pod()
	if err := c.Add(t.Context(), p, w); err != nil {
		t.Fatal(err)
	}
	w.Close()
	got, tap := a.get("default/web")
	if !reflect.DeepEqual(got, p) {
		t.Errorf("got %+v, want %+v", got, p)
	}
	if _, err := tap.WriteString("frame"); err != nil {
		t.Error(err)
	}
	frame := make([]byte, 5)
	if _, err := io.ReadFull(r, frame); err != nil || string(frame) != "frame" {
		t.Errorf("%q, %v", frame, err)
	}
	for range 2 { // the second detaches nothing
		if err := c.Del(t.Context(), Pod{Namespace: "default", Name: "web"}); err != nil {
			t.Error(err)
		}
	}
	closed(t, r)
}

func TestAttacherErrors(t *testing.T) {
	a := newAgent()
	a.err = errors.New("this is no TAP")
	c := start(t, a, Options{})
	r, w := pipe(t)
	for err, want := range map[error]string{
		c.Add(t.Context(), pod(), w):                                   "attach pod default/web: this is no TAP",
		c.Del(t.Context(), pod()):                                      "detach pod default/web: this is no TAP",
		func() error { _, err := c.Status(t.Context()); return err }(): "this is no TAP",
	} {
		if err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	w.Close()
	closed(t, r)
}

func TestBadPods(t *testing.T) {
	a := newAgent()
	c := start(t, a, Options{})
	addr := netip.MustParseAddr
	for name, spoil := range map[string]func(*Pod){
		"needs a namespace and a name":               func(p *Pod) { p.Name = "" },
		"a pod needs a namespace":                    func(p *Pod) { p.Namespace = "" },
		"a pod needs one address":                    func(p *Pod) { p.Addrs = nil },
		"or one of each family":                      func(p *Pod) { p.Addrs = append(p.Addrs, addr("10.0.0.9")) },
		"may have one address of each":               func(p *Pod) { p.Addrs[1] = addr("10.0.0.9") },
		`"::ffff:10.0.0.9" is no address`:            func(p *Pod) { p.Addrs[0] = addr("::ffff:10.0.0.9") },
		`"fe80::1%eth0" is no address`:               func(p *Pod) { p.Addrs[1] = addr("fe80::1%eth0") },
		`"224.0.0.1" is no address`:                  func(p *Pod) { p.Addrs[0] = addr("224.0.0.1") },
		`"127.0.0.1" is no address`:                  func(p *Pod) { p.Addrs[0] = addr("127.0.0.1") },
		`"::" is no address`:                         func(p *Pod) { p.Addrs[1] = addr("::") },
		`"" is no MAC`:                               func(p *Pod) { p.MAC = "" },
		`"02:00:5e:10:00:00:00:01" is no MAC`:        func(p *Pod) { p.MAC = "02:00:5e:10:00:00:00:01" },
		`"01:00:5e:00:00:01" is no MAC`:              func(p *Pod) { p.MAC = "01:00:5e:00:00:01" },
		"MTU 0 is not within":                        func(p *Pod) { p.MTU = 0 },
		"MTU 70000 is not within":                    func(p *Pod) { p.MTU = 70000 },
		"attach pod default/web: MTU -1 is not with": func(p *Pod) { p.MTU = -1 },
	} {
		r, w := pipe(t)
		p := pod()
		spoil(&p)
		if err := c.Add(t.Context(), p, w); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("got %v, want %q", err, name)
		}
		w.Close()
		closed(t, r)
	}
	if err := c.Del(t.Context(), Pod{Name: "web"}); err == nil || !strings.Contains(err.Error(), "needs a namespace") {
		t.Errorf("got %v", err)
	}
	if err := c.Add(t.Context(), pod(), nil); !errors.Is(err, os.ErrInvalid) {
		t.Errorf("no file: %v", err)
	}
	if n := a.len(); n != 0 {
		t.Errorf("%d pods were attached", n)
	}
}

// TestBadRequests sends requests that no Client sends.
func TestBadRequests(t *testing.T) {
	a := newAgent()
	c := start(t, a, Options{})
	p := pod()
	for _, tc := range []struct {
		request any
		files   int
		want    string
	}{
		{request{Op: opAdd, Pod: &p}, 0, "expected the descriptor of one TAP, got 0 descriptors"},
		{request{Op: opAdd, Pod: &p}, 2, "expected the descriptor of one TAP, got 2 descriptors"},
		{request{Op: opAdd}, 1, "no pod was described"},
		{request{Op: opDel}, 1, "no pod was named"},
		{request{Op: "prepare", Pod: &p}, 1, `unknown request "prepare"`},
		{"garbage", 1, "not a message"},
		{map[string]any{"op": "add", "pod": map[string]any{"addrs": []string{"10.0.0.300"}}}, 1, "not a message"},
	} {
		r, w := pipe(t)
		conn, err := fdpass.Dial(t.Context(), c.Path)
		if err != nil {
			t.Fatal(err)
		}
		fd, err := fdpass.Dup(w)
		if err != nil {
			t.Fatal(err)
		}
		fds := []int{fd, fd}[:tc.files]
		var ans answer
		if _, err := conn.Call(t.Context(), tc.request, &ans, fds...); err != nil || !strings.Contains(ans.Error, tc.want) {
			t.Errorf("%v with %d files: %q, %v; want %q", tc.request, tc.files, ans.Error, err, tc.want)
		}
		unix.Close(fd)
		w.Close()
		closed(t, r)
		conn.Close()
	}
	if n := a.len(); n != 0 {
		t.Errorf("%d pods were attached", n)
	}
	if _, err := c.Status(t.Context()); err != nil {
		t.Errorf("other clients: %v", err)
	}
}

// The agent accepts only another user than the test's.
func TestRefusedUser(t *testing.T) {
	a := newAgent()
	c := start(t, a, Options{UIDs: []uint32{uint32(os.Geteuid()) + 1}, Log: slog.New(slog.DiscardHandler)})
	r, w := pipe(t)
	want := fmt.Sprintf("user %d may not use %s", os.Geteuid(), c.Path)
	if err := c.Add(t.Context(), pod(), w); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %q", err, want)
	}
	w.Close()
	closed(t, r)
	if _, err := c.Status(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %q", err, want)
	}
	if n := a.len(); n != 0 {
		t.Errorf("%d pods were attached", n)
	}
}

func TestNoAgent(t *testing.T) {
	c := Client{Path: filepath.Join(t.TempDir(), "none")}
	if _, err := c.Status(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	// This agent never answers.
	ln, err := net.Listen("unixpacket", c.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := c.Status(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestManyAtOnce(t *testing.T) {
	a := newAgent()
	c := start(t, a, Options{})
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			r, w := pipe(t)
			p := pod()
			p.Name = fmt.Sprint("web-", i)
			if err := c.Add(t.Context(), p, w); err != nil {
				t.Error(err)
			}
			w.Close()
			if i%2 == 0 {
				if err := c.Del(t.Context(), p); err != nil {
					t.Error(err)
				}
				closed(t, r)
			}
		})
	}
	wg.Wait()
	if n := a.len(); n != 25 {
		t.Errorf("%d pods, want 25", n)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, tap := range a.taps {
		tap.Close()
	}
}
