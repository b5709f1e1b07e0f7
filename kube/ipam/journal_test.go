package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// state returns the leases that were read from a journal, as text.
func state(w *world) string {
	s := ""
	for _, l := range w.Held() {
		s += l.ContainerID + "=" + text(l.Addrs) + " "
	}
	return s + fmt.Sprint("resting ", w.Resting())
}

// A journal that was cut anywhere holds what it held when it had that length.
func TestCutAnywhere(t *testing.T) {
	w := newWorld(t, "10.1.0.0/24", "fd00:1::/64")
	states := map[int64]string{}
	note := func() {
		st, err := os.Stat(w.path)
		if err != nil {
			t.Fatal(err)
		}
		states[st.Size()] = state(w)
	}
	for i := range 4 {
		if _, err := w.acquire(fmt.Sprint("c", i)); err != nil {
			t.Fatal(err)
		}
		note()
	}
	w.release("c1")
	note()
	w.gets("c4", "10.1.0.7 fd00:1::7")
	note()
	whole, err := os.ReadFile(w.path)
	if err != nil {
		t.Fatal(err)
	}
	first := int64(len(whole))
	for size := range states {
		first = min(first, size)
	}
	want := "resting 0"
	for size := range int64(len(whole)) + 1 {
		at, exact := states[size]
		if exact {
			want = at
		}
		damage := ""
		switch {
		case exact || size == int64(len(header)):
		case size == 0:
			damage = "was empty"
		case size < int64(len(header)):
			damage = "was not one"
		default:
			damage = "last line"
		}
		cut := &world{t: t, path: filepath.Join(t.TempDir(), "addresses"), now: w.now, rest: w.rest, ranges: w.ranges}
		if err := os.WriteFile(cut.path, whole[:size], 0o600); err != nil {
			t.Fatal(err)
		}
		cut.open(damage)
		if got := state(cut); got != want {
			t.Fatalf("cut to %d bytes: %s, want %s", size, got, want)
		}
		// It can still be written to, and the next agent finds it undamaged.
		if _, err := cut.acquire("next"); err != nil {
			t.Fatal(err)
		}
		got := state(cut)
		cut.open("")
		if again := state(cut); again != got || !strings.Contains(got, "next=") {
			t.Fatalf("cut to %d bytes, and written to: %s, then %s", size, got, again)
		}
		cut.Close()
	}
}

// A flipped bit costs only the line that contains it.
func TestDamaged(t *testing.T) {
	w := newWorld(t, "10.1.0.0/24")
	w.gets("a", "10.1.0.3")
	w.gets("b", "10.1.0.4")
	w.gets("c", "10.1.0.5")
	b, err := os.ReadFile(w.path)
	if err != nil {
		t.Fatal(err)
	}
	i := strings.Index(string(b), "10.1.0.4")
	b[i+7] ^= 1
	if err := os.WriteFile(w.path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	w.open("1 damaged lines of the journal")
	if got := state(w); got != "a=10.1.0.3 c=10.1.0.5 resting 0" {
		t.Error(got)
	}
	if err := os.WriteFile(w.path, []byte("something else\nof two lines\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.open("was not one")
	w.gets("a", "10.1.0.3")
	w.open("")
	// A newer agent's journal is not touched.
	newer := []byte("tapestry addresses 2\n1234\n")
	if err := os.WriteFile(w.path, newer, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Open(w.path, Options{}); err == nil || !strings.Contains(err.Error(), "a newer agent wrote it") {
		t.Errorf("got %v", err)
	}
	if err := os.Remove(w.path); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(w.path, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Open(w.path, Options{}); err == nil {
		t.Error("a directory was read")
	}
}

// The file does not grow with the number of past pods, and rewriting it loses nothing.
func TestRewrite(t *testing.T) {
	w := newWorld(t, "10.1.0.0/24")
	w.gets("stays", "10.1.0.3")
	if err := os.WriteFile(w.path+".new-123", []byte("of an agent that was killed"), 0o600); err != nil {
		t.Fatal(err)
	}
	most := int64(0)
	for i := range 600 {
		c := fmt.Sprint("c", i)
		if _, err := w.acquire(c); err != nil {
			t.Fatal(err)
		}
		w.release(c)
		w.now = w.now.Add(10 * time.Second)
		st, err := os.Stat(w.path)
		if err != nil {
			t.Fatal(err)
		}
		most = max(most, st.Size())
	}
	if most > 50<<10 {
		t.Errorf("the journal grew to %d bytes", most)
	}
	before := state(w)
	w.open("")
	if got := state(w); got != before || !strings.HasPrefix(got, "stays=10.1.0.3 ") {
		t.Errorf("%s, then %s", before, got)
	}
	if files, _ := filepath.Glob(w.path + "*"); len(files) != 1 {
		t.Errorf("files: %v", files)
	}
}

// small mounts a file system of a few pages.
func small(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=16k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

func fill(t *testing.T, dir string) (free func()) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = f.Write(make([]byte, 1024))
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	f.Close()
	return func() { os.Remove(f.Name()) }
}

func TestDiskFull(t *testing.T) {
	w := newWorld(t, "10.1.0.0/24")
	dir := small(t)
	w.path = filepath.Join(dir, "addresses")
	// Not even the file can be made.
	free := fill(t, dir)
	w.open("")
	if _, err := w.acquire("a"); !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "note the addresses of pod default/pod-a") {
		t.Errorf("got %v", err)
	}
	if got := state(w); got != "resting 0" {
		t.Error(got)
	}
	free()
	w.gets("a", "10.1.0.3")
	// Leases are added until the disk is full.
	free = fill(t, dir)
	n := 0
	for ; n < 100; n++ {
		if _, err := w.acquire(fmt.Sprint("c", n)); err != nil {
			if !errors.Is(err, unix.ENOSPC) {
				t.Fatal(err)
			}
			break
		}
	}
	if n == 0 || n == 100 {
		t.Fatalf("%d leases were written to a full disk", n)
	}
	before := state(w)
	for range 3 { // failed attempts lose nothing
		if _, err := w.acquire("too much"); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("got %v", err)
		}
	}
	if got := state(w); got != before {
		t.Errorf("%s, then %s", before, got)
	}
	w.open("")
	if got := state(w); got != before {
		t.Errorf("%s, then %s", before, got)
	}
	// A release counts all the same, and is written when there is room.
	full := fmt.Sprint("c", n)
	if _, err := w.acquire(full); !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	if err := w.Release(key("a")); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("got %v", err)
	}
	if _, held := w.Get(key("a")); held {
		t.Error("the lease is still held")
	}
	free()
	if _, err := w.acquire(full); err != nil {
		t.Fatal(err)
	}
	before = state(w)
	w.open("")
	if got := state(w); got != before || strings.Contains(got, "a=") || !strings.Contains(got, full+"=") || w.Resting() != 1 {
		t.Errorf("%s, then %s", before, got)
	}
}

// Two pods never have the same address, in whatever order their requests come in.
func TestManyAtOnce(t *testing.T) {
	w := newWorld(t, "10.1.0.0/24")
	type result struct {
		addrs []netip.Addr
		err   error
	}
	results := make(chan result)
	const pods = 100
	for i := range pods {
		go func() {
			addrs, err := w.acquire(fmt.Sprint("c", i))
			results <- result{addrs, err}
		}()
	}
	seen := map[string]bool{}
	for range pods {
		r := <-results
		if r.err != nil || seen[text(r.addrs)] {
			t.Errorf("%v, %v, seen %v", r.addrs, r.err, seen[text(r.addrs)])
		}
		seen[text(r.addrs)] = true
	}
}
