package nodeinit

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/codec"
	"tapestry.dev/tapestry/netstack/hosttap"
	"tapestry.dev/tapestry/netstack/keeper"
	"tapestry.dev/tapestry/test/userns"
)

// newKeeper runs a keeper at a socket.
func newKeeper(t *testing.T, path string) {
	t.Helper()
	ln, err := keeper.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	k := keeper.New()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- k.Serve(ctx, ln, keeper.Options{}) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		k.Close()
	})
}

// log collects log lines, and signals each of them.
type log struct {
	mu    sync.Mutex
	text  bytes.Buffer
	lines chan string
}

func newLog() *log { return &log{lines: make(chan string, 64)} }

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines <- string(p)
	return l.text.Write(p)
}

func newStep(t *testing.T) (*step, *log) {
	t.Helper()
	dir, l := t.TempDir(), newLog()
	s := &step{
		config: config{
			podCIDRs:     []netip.Prefix{netip.MustParsePrefix("10.244.3.0/24")},
			clusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")},
			serviceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")},
			keeper:       filepath.Join(dir, "run", "keeper.sock"),
			directories:  []string{filepath.Join(dir, "run"), filepath.Join(dir, "state")},
			group:        os.Getegid(), owner: userns.Mapped(65532), pingFile: pingGroupRange,
			listen: []string{"127.0.0.1:80"},
		},
		log: slog.New(slog.NewTextHandler(l, nil)), retry: time.Millisecond,
	}
	t.Cleanup(func() {
		if err := hosttap.Remove(nil); err != nil {
			t.Error(err)
		}
	})
	return s, l
}

// TestHostTAP follows the life of a node: the step runs before the keeper is there, runs again, and removes
// everything.
func TestHostTAP(t *testing.T) {
	s, l := newStep(t)
	done := make(chan error, 1)
	go func() { done <- s.run(t.Context()) }()
	for line := range l.lines {
		if strings.Contains(line, "waiting for the keeper") {
			break
		}
	}
	newKeeper(t, s.keeper)
	if err := <-done; err != nil {
		t.Fatalf("%v\n%s", err, l.text.String())
	}
	for _, dir := range s.directories {
		st, err := os.Stat(dir)
		if err != nil || st.Mode().Perm() != 0o770 {
			t.Errorf("%s: %v, %v", dir, st.Mode(), err)
		}
	}
	if b, err := os.ReadFile(pingGroupRange); err != nil || !strings.HasPrefix(string(b), "0\t") {
		t.Errorf("ping_group_range is %q, %v", b, err)
	}
	if ifc, err := net.InterfaceByName(hosttap.Name); err != nil || ifc.MTU != 1420 {
		t.Errorf("%+v, %v", ifc, err)
	}

	kept, err := keeper.Dial(t.Context(), s.keeper)
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	first := port(t, kept, "127.0.0.1:80")
	// The step runs again, as in the next agent's pod. It binds nothing a second time.
	if err := s.run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if again := port(t, kept, "127.0.0.1:80"); again != first {
		t.Errorf("the listener is another one: inode %d, was %d", again, first)
	}
	// With another address, the old address becomes free.
	s.listen = []string{"127.0.0.1:81"}
	if err := s.run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := kept.Get(keeper.ListenPrefix + "127.0.0.1:80"); !errors.Is(err, keeper.ErrNotFound) {
		t.Errorf("the old listener: %v", err)
	}
	// The keeper closes what it has sent after its reader has it, so the address may become free a moment later.
	free, err := net.Listen("tcp", "127.0.0.1:80")
	for errors.Is(err, unix.EADDRINUSE) {
		time.Sleep(time.Millisecond)
		free, err = net.Listen("tcp", "127.0.0.1:80")
	}
	if err != nil {
		t.Fatal(err)
	}
	free.Close()

	if err := s.remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if items, err := kept.List(); err != nil || len(items) != 0 {
		t.Errorf("the keeper still holds %v, %v", items, err)
	}
	if _, err := net.InterfaceByName(hosttap.Name); err == nil {
		t.Error("the interface is still there")
	}
	for _, dir := range s.directories {
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", dir, err)
		}
	}
	if err := s.remove(t.Context()); err != nil {
		t.Errorf("removing what is not there: %v", err)
	}
}

// port checks that connections arrive at the kept listener, and returns the socket's inode.
func port(t *testing.T, kept *keeper.Client, addr string) uint64 {
	t.Helper()
	it, err := kept.Get(keeper.ListenPrefix + addr)
	if err != nil {
		t.Fatal(err)
	}
	defer it.File.Close()
	ln, err := net.FileListener(it.File)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	at, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	at.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(it.File.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// TestWaitForRanges has an API server that starts late, a Node that gets its ranges later, and one odd range.
func TestWaitForRanges(t *testing.T) {
	s, l := newStep(t)
	s.podCIDRs, s.node = nil, "n1"
	answers := []string{
		"", "",
		"apiVersion: v1\nkind: Node\nmetadata: {name: n1}\n",
		"apiVersion: v1\nkind: Node\nmetadata: {name: n1}\nspec: {podCIDRs: [10.244.9.0/24, \"fd00:9::/64\"]}\n",
	}
	s.nodes = func(context.Context) (kube.Objects, error) {
		text := answers[0]
		if answers = answers[1:]; text == "" {
			return kube.Objects{}, errors.New("nobody answers")
		}
		return codec.Decode("node.yaml", []byte(text))
	}
	s.clusterCIDRs = append(s.clusterCIDRs, netip.MustParsePrefix("fd00::/16"))
	host, err := s.waitForRanges(t.Context())
	if err != nil || len(host.PodCIDRs) != 2 || host.MTU != 1420 || len(host.Pods) != 2 || len(host.Services) != 1 {
		t.Errorf("%+v, %v", host, err)
	}
	for _, want := range []string{"waiting for the API server: nobody answers", "waiting for Node n1 to get a range for its pods"} {
		if strings.Count(l.text.String(), want) != 1 {
			t.Errorf("%q was not said once:\n%s", want, l.text.String())
		}
	}
	answers = []string{"apiVersion: v1\nkind: Node\nmetadata: {name: n1}\nspec: {podCIDRs: [192.168.9.0/24]}\n"}
	if _, err := s.waitForRanges(t.Context()); err == nil || !strings.Contains(err.Error(), "192.168.9.0/24 is outside of --cluster-cidr") {
		t.Error(err)
	}
}

// TestRemoveMountPoint has a state directory that is a mount point.
func TestRemoveMountPoint(t *testing.T) {
	s, l := newStep(t)
	dir := s.directories[1]
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("state", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	if err := os.WriteFile(filepath.Join(dir, "wireguard.key"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 || !strings.Contains(l.text.String(), "a directory stays, empty") {
		t.Errorf("left: %v, %v\n%s", left, err, l.text.String())
	}
	s.directories = []string{"relative"}
	if err := s.remove(t.Context()); err == nil || !strings.Contains(err.Error(), "expected an absolute path") {
		t.Error(err)
	}
}

// TestPortTaken checks that the node's network works if another program holds the Ingress port.
func TestPortTaken(t *testing.T) {
	s, l := newStep(t)
	other, err := net.Listen("tcp", s.listen[0])
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := makeDirectory(filepath.Dir(s.keeper), s.group); err != nil {
		t.Fatal(err)
	}
	newKeeper(t, s.keeper)
	if err := s.run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(l.text.String(), "Ingress will not be served here") {
		t.Errorf("nothing was said of it:\n%s", l.text.String())
	}
}

// TestCancelled ends the step while it waits.
func TestCancelled(t *testing.T) {
	s, l := newStep(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.run(ctx) }()
	for line := range l.lines {
		if strings.Contains(line, "waiting for the keeper") {
			break
		}
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestCheck(t *testing.T) {
	p := func(s string) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(s)} }
	for _, tc := range []struct {
		name string
		c    config
		want string
	}{
		{"nothing", config{}, "give --node and --api-server, or --pod-cidr"},
		{"no server", config{node: "n"}, "give --node and --api-server"},
		{"no cluster range", config{podCIDRs: p("10.0.0.0/24")}, "--cluster-cidr is missing"},
		{"load balancers among pods", config{podCIDRs: p("10.0.0.0/24"), clusterCIDRs: p("10.0.0.0/8"), serviceCIDRs: p("10.96.0.0/12"), balancers: p("10.97.0.0/24")}, "--load-balancer-cidr 10.97.0.0/24 overlaps 10.0.0.0/8"},
		{"no service range", config{podCIDRs: p("10.0.0.0/24"), clusterCIDRs: p("10.0.0.0/8")}, "--service-cidr is missing"},
		{"listen", config{podCIDRs: p("10.0.0.0/24"), clusterCIDRs: p("10.0.0.0/8"), serviceCIDRs: p("10.0.0.0/8"), listen: []string{"80"}}, `--listen "80" is not an address`},
	} {
		if err := tc.c.check(); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
	}
	good := config{node: "n", apiServers: []string{"https://10.0.0.1:6443"}, clusterCIDRs: p("10.0.0.0/8"), serviceCIDRs: p("10.0.0.0/8"), balancers: p("203.0.113.0/24"), listen: []string{":80"}}
	if err := good.check(); err != nil {
		t.Error(err)
	}
	s := step{config: good}
	if err := s.inside(p("10.3.0.0/24")); err != nil {
		t.Error(err)
	}
	for _, outside := range []string{"11.3.0.0/24", "0.0.0.0/0"} {
		if err := s.inside(p(outside)); err == nil || !strings.Contains(err.Error(), "outside of --cluster-cidr") {
			t.Errorf("%s: %v", outside, err)
		}
	}
	if _, err := prefixes("pod-cidr", []string{"10.0.0.1"}); err == nil || !strings.Contains(err.Error(), `--pod-cidr "10.0.0.1" is not a prefix`) {
		t.Error(err)
	}
}
