package keeper

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/fdpass"
	"tapestry.dev/tapestry/test/await"
	"tapestry.dev/tapestry/test/awake"
)

// start runs a keeper on a socket of its own.
func start(t *testing.T, o Options) (*Keeper, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "k")
	ln, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	k := New()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- k.Serve(ctx, ln, o) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
		k.Close()
	})
	return k, path
}

func dial(t *testing.T, path string) *Client {
	t.Helper()
	c, err := Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// memory makes a descriptor that can be recognised by its content.
func memory(t *testing.T, content string) *os.File {
	t.Helper()
	f, err := NewMemory("test", 4096)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.WriteAt([]byte(content), 0); err != nil {
		t.Fatal(err)
	}
	return f
}

func content(t *testing.T, f *os.File) string {
	t.Helper()
	b := make([]byte, 100)
	if _, err := f.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return string(bytes.TrimRight(b, "\x00"))
}

// openFiles counts the descriptors of this process by what they refer to.
func openFiles(t *testing.T) map[string]int {
	t.Helper()
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	open := map[string]int{}
	for _, e := range entries {
		// A descriptor may be closed by now, as the directory's own is.
		if target, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil {
			open[target]++
		}
	}
	return open
}

// nothingLeaked waits until no more descriptors are open than before. Fewer may be open, because descriptors of earlier
// tests may have been closed meanwhile.
func nothingLeaked(t *testing.T, before map[string]int) {
	t.Helper()
	await.Until(t, "every descriptor is closed", func() bool {
		for target, n := range openFiles(t) {
			if n > before[target] {
				return false
			}
		}
		return true
	})
}

func TestPutGetListDelete(t *testing.T) {
	k, path := start(t, Options{})
	c := dial(t, path)
	meta := json.RawMessage(`{"pod":"<a&b>","mtu":1400}`)
	if err := c.Put("a", meta, memory(t, "one")); err != nil {
		t.Fatal(err)
	}
	if err := c.Put("a", meta, memory(t, "two")); err != nil { // replaces
		t.Fatal(err)
	}
	if err := k.Put("b", nil, memory(t, "three")); err != nil {
		t.Fatal(err)
	}
	for name, list := range map[string]func() ([]Item, error){"client": c.List, "keeper": k.List} {
		items, err := list()
		if err != nil || len(items) != 2 {
			t.Fatalf("%s: %v, %v", name, items, err)
		}
		a, b := items[0], items[1]
		if a.Key != "a" || string(a.Meta) != string(meta) || content(t, a.File) != "two" {
			t.Errorf("%s: a is %s %s %q", name, a.Key, a.Meta, content(t, a.File))
		}
		if b.Key != "b" || len(b.Meta) != 0 || content(t, b.File) != "three" {
			t.Errorf("%s: b is %s %s %q", name, b.Key, b.Meta, content(t, b.File))
		}
		for _, it := range items {
			checkCloexec(t, it.File)
		}
		closeItems(items)
	}
	for name, get := range map[string]func(string) (Item, error){"client": c.Get, "keeper": k.Get} {
		it, err := get("a")
		if err != nil || content(t, it.File) != "two" {
			t.Errorf("%s: %v", name, err)
		}
		it.File.Close()
		if _, err := get("none"); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: %v, want ErrNotFound", name, err)
		}
	}
	for range 2 { // the second Delete finds nothing
		if err := c.Delete("a"); err != nil {
			t.Error(err)
		}
	}
	if _, err := c.Get("a"); !errors.Is(err, ErrNotFound) {
		t.Errorf("after Delete: %v", err)
	}
	k.Delete("b")
	if items, err := c.List(); err != nil || len(items) != 0 {
		t.Errorf("got %v, %v", items, err)
	}
}

func checkCloexec(t *testing.T, f *os.File) {
	t.Helper()
	raw, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		if flags, err := unix.FcntlInt(fd, unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("%s is not close-on-exec: %v", f.Name(), err)
		}
	})
}

// TestHeldTwice shows that the keeper has a descriptor when Put has returned, even if everybody else closes it.
func TestHeldTwice(t *testing.T) {
	_, path := start(t, Options{})
	before := openFiles(t)
	c, err := Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Put("pipe", nil, w); err != nil {
		t.Fatal(err)
	}
	w.Close()
	c.Close()
	c = dial(t, path)
	it, err := c.Get("pipe")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := it.File.WriteString("alive"); err != nil {
		t.Fatal(err)
	}
	it.File.Close()
	got := make([]byte, 5)
	if _, err := io.ReadFull(r, got); err != nil || string(got) != "alive" {
		t.Fatalf("%q, %v", got, err)
	}
	// After Delete it is gone for good.
	if err := c.Delete("pipe"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Read(got); err != io.EOF {
		t.Errorf("the keeper still holds the pipe: %v", err)
	}
	r.Close()
	c.Close()
	nothingLeaked(t, before)
}

func TestManyDescriptors(t *testing.T) {
	const n = 600
	_, path := start(t, Options{})
	c := dial(t, path)
	// Some metas are large, so that both limits end pages.
	big := json.RawMessage(`"` + strings.Repeat("<", MaxMeta-2) + `"`)
	for i := range n {
		f := memory(t, fmt.Sprint(i))
		meta := json.RawMessage(fmt.Sprintf(`{"n":%d}`, i))
		if i%50 < 10 {
			meta = big
		}
		if err := c.Put(fmt.Sprintf("\x01<key>%04d", i), meta, f); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	items, err := c.List()
	if err != nil {
		t.Fatal(err)
	}
	defer closeItems(items)
	if len(items) != n {
		t.Fatalf("%d items, want %d", len(items), n)
	}
	for i, it := range items {
		if it.Key != fmt.Sprintf("\x01<key>%04d", i) || content(t, it.File) != fmt.Sprint(i) {
			t.Fatalf("item %d is %q holding %q", i, it.Key, content(t, it.File))
		}
	}
}

func TestBadPut(t *testing.T) {
	k, path := start(t, Options{})
	c := dial(t, path)
	f := memory(t, "x")
	for name, put := range map[string]func(string, json.RawMessage, *os.File) error{"client": c.Put, "keeper": k.Put} {
		for what, err := range map[string]error{
			"empty key":   put("", nil, f),
			"long key":    put(strings.Repeat("k", MaxKey+1), nil, f),
			"binary key":  put("\xff", nil, f),
			"large meta":  put("k", json.RawMessage(`"`+strings.Repeat("x", MaxMeta)+`"`), f),
			"meta":        put("k", json.RawMessage(`{`), f),
			"no file":     put("k", nil, nil),
			"closed file": func() error { g := memory(t, ""); g.Close(); return put("k", nil, g) }(),
		} {
			if err == nil {
				t.Errorf("%s, %s: no error", name, what)
			}
		}
	}
	if err := c.Put("k", nil, f); err != nil {
		t.Errorf("the connection suffered: %v", err)
	}
}

// TestHostile violates the protocol. Nothing may be lost or leak, and no other client may be disturbed.
func TestHostile(t *testing.T) {
	k, path := start(t, Options{})
	good := dial(t, path)
	if err := good.Put("k", nil, memory(t, "kept")); err != nil {
		t.Fatal(err)
	}
	f := memory(t, "x")
	before := openFiles(t)
	fd := int(f.Fd())
	many := make([]int, fdpass.MaxFiles+60)
	for i := range many {
		many[i] = fd
	}
	raw := func(b []byte, fds ...int) func(*net.UnixConn) {
		return func(c *net.UnixConn) {
			var oob []byte
			if len(fds) > 0 {
				oob = unix.UnixRights(fds...)
			}
			c.WriteMsgUnix(b, oob, nil)
		}
	}
	for name, c := range map[string]struct {
		send  func(*net.UnixConn)
		want  string // in the answer
		close bool   // the keeper closes the connection
	}{
		"garbage":            {raw([]byte("\x00\xff garbage")), "not a message", true},
		"garbage, files":     {raw([]byte("{"), fd, fd), "not a message", true},
		"wrong type":         {raw([]byte(`{"op":7}`), fd), "not a message", true},
		"too long":           {raw(bytes.Repeat([]byte(" "), fdpass.MaxMessage+500), fd), "not a message", true},
		"too many files":     {raw([]byte(`{"op":"put","key":"k"}`), many...), "descriptors", true},
		"unknown request":    {raw([]byte(`{"op":"format"}`), fd), "unknown request", false},
		"put without file":   {raw([]byte(`{"op":"put","key":"k"}`)), "needs one descriptor, got 0", false},
		"put with two files": {raw([]byte(`{"op":"put","key":"k"}`), fd, fd), "needs one descriptor, got 2", false},
		"put without key":    {raw([]byte(`{"op":"put"}`), fd), "key is empty", false},
		"list with a file":   {raw([]byte(`{"op":"list","key":"zzz"}`), fd), "", false},
		"nothing":            {raw(nil, fd), "", true},
	} {
		t.Run(name, func(t *testing.T) {
			uc, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
			if err != nil {
				t.Fatal(err)
			}
			defer uc.Close()
			uc.SetDeadline(time.Now().Add(10 * time.Second))
			c.send(uc)
			buf := make([]byte, 1000)
			n, err := uc.Read(buf)
			if c.want != "" && (err != nil || !strings.Contains(string(buf[:n]), c.want)) {
				t.Errorf("answer %q, %v; want %q", buf[:n], err, c.want)
			}
			if c.close {
				for err == nil {
					_, err = uc.Read(buf)
				}
				if errors.Is(err, os.ErrDeadlineExceeded) {
					t.Error("the connection stays open")
				}
			}
		})
	}
	if it, err := good.Get("k"); err != nil || content(t, it.File) != "kept" {
		t.Errorf("the other client: %v", err)
	} else {
		it.File.Close()
	}
	nothingLeaked(t, before)
	if items, err := k.List(); err != nil || len(items) != 1 {
		t.Errorf("%v, %v", items, err)
	} else {
		closeItems(items)
	}
}

// TestSilentClient sends many requests and never reads an answer.
func TestSilentClient(t *testing.T) {
	_, path := start(t, Options{})
	c := dial(t, path)
	for i := range 100 {
		f := memory(t, "x")
		if err := c.Put(fmt.Sprint(i), json.RawMessage(`"`+strings.Repeat("x", 500)+`"`), f); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	uc, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	defer uc.Close()
	uc.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
	for {
		if _, err := uc.Write([]byte(`{"op":"list"}`)); err != nil {
			break // the buffers of both directions are full
		}
	}
	clock := awake.Start()
	defer clock.Stop()
	if items, err := c.List(); err != nil || len(items) != 100 {
		t.Errorf("%d items, %v", len(items), err)
	} else {
		closeItems(items)
	}
	if d := clock.Now(); d > 5*time.Second {
		t.Errorf("another client waited %v", d)
	}
}

func TestClaim(t *testing.T) {
	_, path := start(t, Options{})
	a, b := dial(t, path), dial(t, path)
	for range 2 { // the holder may claim again
		if err := a.Claim(t.Context(), "n1"); err != nil {
			t.Fatal(err)
		}
	}
	want := fmt.Sprintf("an agent for node n1 is already running (pid %d); stop it first", os.Getpid())
	if err := b.Claim(t.Context(), "n1"); err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if err := b.Put("k", nil, memory(t, "x")); err != nil {
		t.Errorf("refused clients may still speak: %v", err)
	}
	a.Close()
	if err := b.Claim(t.Context(), "n1"); err != nil { // at once
		t.Errorf("after the holder's end: %v", err)
	}
}

func TestDialErrors(t *testing.T) {
	if _, err := Dial(t.Context(), filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	// A keeper that never answers.
	ln, err := Listen(filepath.Join(t.TempDir(), "k"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c := dial(t, ln.Addr().String())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Claim(ctx, "n"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestListenTwice(t *testing.T) {
	path := filepath.Join(t.TempDir(), "k")
	ln, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), "another process listens there") {
		t.Errorf("got %v", err)
	}
	// The socket file stays, as after a killed process.
	ln.SetUnlinkOnClose(false)
	ln.Close()
	if ln, err = Listen(path); err != nil {
		t.Fatal(err)
	}
	ln.Close()
}

func TestMemory(t *testing.T) {
	f := memory(t, "flow")
	mem, err := Map(f)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mem)
	if len(mem) != 4096 || string(mem[:4]) != "flow" {
		t.Errorf("%d bytes, %q", len(mem), mem[:4])
	}
	copy(mem, "FLOW")
	if got := content(t, f); got != "FLOW" {
		t.Errorf("not shared: %q", got)
	}
	if f.Truncate(100) == nil || f.Truncate(10000) == nil {
		t.Error("the size can be changed")
	}
	checkCloexec(t, f)
	plain, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	if _, err := Map(plain); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a plain file: %v", err)
	}
	if _, err := NewMemory("x", -1); err == nil {
		t.Error("negative size: no error")
	}
}
