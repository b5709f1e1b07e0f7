package pods

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/kube/cni"
	"tapestry.dev/tapestry/netstack"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/tap"
)

// desk is a Registry with a fake packet path, a fake keeper and a clock.
type desk struct {
	*Registry
	t         *testing.T
	now       time.Time
	fixed     string
	there     map[string]netstack.AttachmentConfig
	kept      map[string]string // containers by key
	attachErr error
	putErr    error
	fixedErr  error
	changed   func()
	claimed   bool
}

func (d *desk) AttachTAP(c netstack.AttachmentConfig, f *os.File) error {
	if d.attachErr != nil {
		return d.attachErr
	}
	d.there[c.Name] = c
	return f.Close() // the packet path owns it
}

func (d *desk) Detach(name string) bool {
	was := d.Attached(name)
	delete(d.there, name)
	return was
}

func (d *desk) Attached(name string) bool { _, ok := d.there[name]; return ok }

func (d *desk) Local(a netip.Addr) bool {
	for _, p := range d.there {
		for _, b := range p.Addrs {
			if a == b {
				return true
			}
		}
	}
	return false
}

func (d *desk) PodRanges() ([]netip.Prefix, int) {
	return []netip.Prefix{netip.MustParsePrefix("10.244.1.0/29")}, 1400
}

func (d *desk) Put(key string, meta json.RawMessage, _ *os.File) error {
	var pod cni.Pod
	if err := errors.Join(d.putErr, json.Unmarshal(meta, &pod)); err != nil {
		return err
	}
	d.kept[key] = pod.ContainerID
	return nil
}

func (d *desk) Delete(key string) error {
	delete(d.kept, key)
	return nil
}

func newDesk(t *testing.T) *desk {
	d := &desk{t: t, now: time.Unix(1_800_000_000, 0), there: map[string]netstack.AttachmentConfig{}, kept: map[string]string{}, changed: func() {}}
	var err error
	d.Registry, err = New(Options{
		Journal: filepath.Join(t.TempDir(), "addresses"), Rest: time.Minute, Keeper: d,
		Fixed:   func(context.Context, string, string) (string, error) { return d.fixed, d.fixedErr },
		Claimed: func(string, string, []netip.Addr) bool { return d.claimed },
		Now:     func() time.Time { return d.now }, Log: slog.New(slog.DiscardHandler),
		Changed: func() { d.changed() },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Registry.Close() })
	d.Restore(d, nil)
	return d
}

func podOf(container string) cni.Pod {
	return cni.Pod{Namespace: "default", Name: "p-" + container, UID: "uid-" + container, ContainerID: container, IfName: "eth0", Network: "net"}
}

func (d *desk) prepare(container string) cni.Prepared {
	d.t.Helper()
	p, err := d.Prepare(d.t.Context(), podOf(container))
	if err != nil {
		d.t.Fatal(err)
	}
	return p
}

// tap makes a TAP that the packet path may close.
func (d *desk) tap() *os.File {
	d.t.Helper()
	ns, err := tap.NewNamespace()
	if err != nil {
		d.t.Fatal(err)
	}
	defer ns.Close() // the TAP holds the namespace
	f, err := tap.Create(ns, tap.PodConfig([]netip.Addr{netip.MustParseAddr("10.244.1.3")}, packet.MAC{2, 0, 0, 0, 0, 1}, 1400))
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { f.Close() })
	return f
}

func (d *desk) has(attachments, kept, leases int) {
	d.t.Helper()
	if len(d.there) != attachments || len(d.kept) != kept || len(d.leases.Held()) != leases {
		d.t.Errorf("%d attachments, %d kept, %d leases; want %d, %d, %d", len(d.there), len(d.kept), len(d.leases.Held()), attachments, kept, leases)
	}
}

func TestReview(t *testing.T) {
	d := newDesk(t)
	stays, goes := d.prepare("stays"), d.prepare("goes")
	d.prepare("never")
	for _, p := range []cni.Prepared{stays, goes} {
		if err := d.Add(p.Pod, d.tap()); err != nil {
			t.Fatal(err)
		}
	}
	d.has(2, 2, 3)
	d.now = d.now.Add(prepareTime - time.Second)
	d.review()
	d.has(2, 2, 3)
	// A pod whose TAP was deleted has no attachment any more.
	delete(d.there, goes.String())
	if _, err := d.Check(t.Context(), goes.Pod); !errors.Is(err, cni.ErrNotAttached) {
		t.Errorf("got %v", err)
	}
	d.review()
	d.has(1, 1, 2)
	// A pod that did not come has had enough time.
	d.now = d.now.Add(time.Second)
	d.review()
	d.has(1, 1, 1)
	if _, err := d.Check(t.Context(), stays.Pod); err != nil {
		t.Error(err)
	}
}

func TestPrepare(t *testing.T) {
	d := newDesk(t)
	p := d.prepare("a")
	if p.MAC != "0a:58:0a:f4:01:03" || p.MTU != 1400 || p.Addrs[0].String() != "10.244.1.3" || p.Attached {
		t.Errorf("%+v", p)
	}
	if again := d.prepare("a"); again.Addrs[0] != p.Addrs[0] {
		t.Errorf("%+v", again)
	}
	if err := d.Add(p.Pod, d.tap()); err != nil {
		t.Fatal(err)
	}
	if got := d.there["default/p-a"]; got.UID != "uid-a" {
		t.Errorf("the attachment has the UID %q", got.UID)
	}
	if again := d.prepare("a"); !again.Attached || again.MAC != p.MAC {
		t.Errorf("%+v", again)
	}
	second := podOf("a")
	second.IfName = "eth1"
	if _, err := d.Prepare(t.Context(), second); err == nil || !strings.Contains(err.Error(), "attached already, with eth0 as pod default/p-a") {
		t.Errorf("got %v", err)
	}
	d.fixed = "10.244.1.3"
	if _, err := d.Prepare(t.Context(), podOf("b")); !errors.Is(err, cni.ErrTryLater) {
		t.Errorf("got %v", err)
	}
	d.fixed = "10.244.1.300"
	if _, err := d.Prepare(t.Context(), podOf("b")); err == nil || errors.Is(err, cni.ErrTryLater) || !strings.Contains(err.Error(), "[tapestry.dev/pod-ips]: \"10.244.1.300\" is not an address") {
		t.Errorf("got %v", err)
	}
	d.fixed, d.fixedErr = "", errors.New("no API server")
	if _, err := d.Prepare(t.Context(), podOf("b")); !errors.Is(err, cni.ErrTryLater) {
		t.Errorf("got %v", err)
	}
	d.fixedErr = nil
	for _, c := range []string{"b", "c", "d"} {
		d.prepare(c)
	}
	if _, err := d.Prepare(t.Context(), podOf("e")); !errors.Is(err, cni.ErrTryLater) || !strings.Contains(err.Error(), "no address of 10.244.1.0/29 is free") {
		t.Errorf("got %v", err)
	}
}

// An Add that fails half-way leaves nothing but its lease, for the next attempt.
func TestAddFails(t *testing.T) {
	d := newDesk(t)
	p := d.prepare("a")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if err := d.Add(p.Pod, r); err == nil || !strings.Contains(err.Error(), "/dev/net/tun") {
		t.Errorf("no TAP: %v", err)
	}
	d.putErr = errors.New("no keeper")
	if err := d.Add(p.Pod, d.tap()); err == nil {
		t.Error("attached without a keeper")
	}
	d.putErr, d.attachErr = nil, errors.New("no Port")
	if err := d.Add(p.Pod, d.tap()); err == nil {
		t.Error("attached without an attachment")
	}
	d.has(0, 0, 1)
	d.attachErr = nil
	if err := d.Add(p.Pod, d.tap()); err != nil {
		t.Error(err)
	}
	outside := podOf("b")
	outside.Network, outside.MAC, outside.Addrs = "", "02:00:00:00:00:01", []netip.Addr{netip.MustParseAddr("10.9.9.9")}
	if err := d.Add(outside, d.tap()); !errors.Is(err, cni.ErrTryLater) || !strings.Contains(err.Error(), "outside") {
		t.Errorf("got %v", err)
	}
	// This pod comes with its addresses, and needs no lease.
	outside.Addrs[0] = netip.MustParseAddr("10.244.1.4")
	if err := d.Add(outside, d.tap()); err != nil {
		t.Error(err)
	}
	d.has(2, 2, 1)
	if q := d.prepare("c"); q.Addrs[0].String() != "10.244.1.5" {
		t.Errorf("%+v", q)
	}
}

func TestDiskFull(t *testing.T) {
	d := newDesk(t)
	dir := filepath.Dir(d.o.Journal)
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4k"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := d.Prepare(t.Context(), podOf("a"))
	if !errors.Is(err, cni.ErrTryLater) || !strings.Contains(err.Error(), "no space left on device") {
		t.Errorf("got %v", err)
	}
	d.has(0, 0, 0)
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	d.prepare("a")
}

// A pod's name may be longer than a key of the keeper.
func TestLongName(t *testing.T) {
	d := newDesk(t)
	p := podOf("a")
	p.Name = strings.Repeat("n", 253)
	got, err := d.Prepare(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Add(got.Pod, d.tap()); err != nil {
		t.Fatal(err)
	}
	for key := range d.kept {
		if len(key) > 100 || !strings.HasPrefix(key, KeyPrefix) {
			t.Errorf("key %q", key)
		}
	}
	if err := d.Del(p); err != nil {
		t.Error(err)
	}
	d.has(0, 0, 0)
}

// A pod for whose TAP there is no descriptor is refused before the keeper has it, and comes when another one goes. A
// pod that has its place keeps it in a new sandbox.
func TestPodsAreBounded(t *testing.T) {
	d := newDesk(t)
	d.Registry.o.Most = 1
	if err := d.Add(d.prepare("a").Pod, d.tap()); err != nil {
		t.Fatal(err)
	}
	if err := d.Add(d.prepare("a").Pod, d.tap()); err != nil {
		t.Errorf("the same pod again: %v", err)
	}
	b := d.prepare("b")
	if err := d.Add(b.Pod, d.tap()); !errors.Is(err, cni.ErrTryLater) || !strings.Contains(err.Error(), "LimitNOFILE") {
		t.Errorf("got %v", err)
	}
	d.has(1, 1, 2)
	if err := d.Del(podOf("a")); err != nil {
		t.Fatal(err)
	}
	if err := d.Add(b.Pod, d.tap()); err != nil {
		t.Error(err)
	}
}
