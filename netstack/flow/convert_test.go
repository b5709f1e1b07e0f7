package flow

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/packet"
)

// golden returns memory that an agent of an earlier version left. testdata/v1_golden_test.go.txt and its like made it.
func golden(t testing.TB, name string) []byte {
	t.Helper()
	f, err := os.Open("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	mem := aligned(len(data))
	copy(mem, data)
	return mem
}

// aligned returns zeroed memory with the alignment of a mapping.
func aligned(size int) []byte {
	words := make([]uint64, (size+7)/8)
	return unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), size)
}

// goldens are the images of earlier versions, with how many of their flows are whole and how many are not.
var goldens = []struct {
	name            string
	kept, discarded int
	line            func(*Entry, Info) string // one line of the file of flows
}{
	{"v1", 42, 4, func(e *Entry, i Info) string { return goldenLine(e, "zone", "", i) }},
	{"v2", 45, 5, func(e *Entry, i Info) string {
		return goldenLine(e, "space", fmt.Sprintf("owner %x cluster %x policy %d counts %d | ", e.Owner, e.Cluster, e.Policy, e.Counts), i)
	}},
}

func goldenLine(e *Entry, space, ledger string, i Info) string {
	end := func(a packet.Addr, port uint16) string { return fmt.Sprintf("%s %d", a.Netip(), port) }
	side := func(t *packet.Tuple) string {
		return fmt.Sprintf("%s %s %s %x", end(t.Src, t.SrcPort), end(t.Dst, t.DstPort), space, t.Space)
	}
	return fmt.Sprintf("%d | %s | %s | backend %x via %x kind %d | %s%s age %d idle %d",
		e.Orig.Proto, side(&e.Orig), side(&e.Reply), e.Backend, e.Via, e.Kind, ledger, i.State, i.Age, i.Idle)
}

// TestConvertGolden: every flow that an earlier version would have kept from its memory is kept, and no other.
func TestConvertGolden(t *testing.T) {
	for _, g := range goldens {
		text, err := os.ReadFile("testdata/" + g.name + ".flows")
		if err != nil {
			t.Fatal(err)
		}
		want := strings.Split(strings.TrimSpace(string(text)), "\n")
		if want[0] != fmt.Sprintf("# kept %d, discarded %d", g.kept, g.discarded) || len(want) != g.kept+1 {
			t.Fatalf("%s: the file says %q and has %d lines", g.name, want[0], len(want))
		}
		want = want[1:]
		slices.Sort(want)
		testGolden(t, g.name, g.kept, g.discarded, func(table *Table) {
			t.Helper()
			checkGolden(t, table, g.name, g.line, want)
		})
	}
}

func testGolden(t *testing.T, name string, kept, discarded int, check func(*Table)) {
	old := golden(t, name+".image.gz")
	for _, capacity := range []int{kept, 64, 5000} {
		t.Run(fmt.Sprint(name, " ", capacity), func(t *testing.T) {
			before := bytes.Clone(old)
			if Serves(old, capacity) {
				t.Fatal("Serves says that Open takes it as it is")
			}
			clock := &fakeClock{1008}
			table, err := Convert(old, newMem(capacity), Options{Clock: clock.read, Owner: func(e *Entry) uint64 { return uint64(e.Orig.SrcPort) }})
			if err != nil {
				t.Fatal(err)
			}
			if s := table.Stats(); s.Kept != kept || s.Discarded != discarded || s.Unfit != 0 || s.Len != kept || s.Reformatted {
				t.Errorf("stats %+v", s)
			}
			check(table)
			if !bytes.Equal(old, before) {
				t.Error("the old memory was changed")
			}
			// The new memory serves as any other: the next process takes it over, and every flow lives on.
			if !Serves(table.mem(), capacity) {
				t.Fatal("Serves says that Open does not take what Convert made")
			}
			again, err := Open(table.mem(), Options{Clock: clock.read})
			if err != nil {
				t.Fatal(err)
			}
			check(again)
			if s := again.Stats(); s.Kept != kept || s.Discarded != 0 {
				t.Errorf("the next process: %+v", s)
			}
		})
	}
}

func checkGolden(t *testing.T, table *Table, name string, line func(*Entry, Info) string, want []string) {
	t.Helper()
	var got []string
	table.Range(func(e *Entry, i Info) bool {
		got = append(got, line(e, i))
		if name == "v1" && (e.Owner != uint64(e.Orig.SrcPort) || e.Cluster != 0 || e.Policy != 0 || e.Counts != [2]Count{}) {
			t.Errorf("%v: %+v", e.Orig, e)
		}
		return true
	})
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("got %d flows, want %d:\n%s\nwant\n%s", len(got), len(want), strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestConvertThousand: 1,000 connections to Services that began under an agent of an earlier version keep their
// backend, and their rewrite in both directions. Their resets count until their ends have said how far they are.
func TestConvertThousand(t *testing.T) {
	for _, g := range goldens {
		t.Run(g.name, func(t *testing.T) { testThousand(t, g.name) })
	}
}

func testThousand(t *testing.T, name string) {
	clock := &fakeClock{1010}
	table, err := Convert(golden(t, name+".thousand.gz"), newMem(1000), Options{Clock: clock.read})
	if err != nil {
		t.Fatal(err)
	}
	if s := table.Stats(); s.Kept != 1000 || s.Discarded != 0 || s.Unfit != 0 {
		t.Errorf("stats %+v", s)
	}
	found := 0
	for i := range 1000 {
		to := tuple(packet.TCP, fmt.Sprintf("10.244.1.%d:%d", 10+i%20, 32768+i), fmt.Sprintf("10.244.%d.%d:8080", 1+i%3, 50+i%11))
		orig := to
		orig.Dst, orig.DstPort = tuple(packet.TCP, "1.1.1.1:1", fmt.Sprintf("10.96.0.%d:80", 1+i%7)).Dst, 80
		backend := 0x9e3779b97f4a7c15 * uint64(i+1)
		reply := to.Reverse()
		var there, back Hit
		if !table.Lookup(&orig, tcp(packet.ACK), &there) || !table.Lookup(&reply, tcp(packet.ACK), &back) {
			t.Errorf("flow %d is not found", i)
			continue
		}
		for dir, h := range []Hit{there, back} {
			if h.Dir != Dir(dir) || !h.Translate || h.State != Established || h.Backend != backend || h.Via != 0 ||
				h.To != [2]packet.Tuple{to, orig.Reverse()}[dir] {
				t.Errorf("flow %d: %+v", i, h)
			}
		}
		found++
		forged, want := packet.Segment{Seq: 1 << 31, Flags: packet.RST}, Reset
		if i%2 == 0 {
			want = Established
			table.Count(&back, 40, packet.Segment{Ack: 5000, Flags: packet.ACK})
		}
		if table.Lookup(&orig, forged, &there); there.State != want {
			t.Errorf("flow %d after a forged reset: %v, want %v", i, there.State, want)
		}
	}
	t.Logf("%d of 1000 flows of %s go on", found, name)
}

// TestConvertSelf: tables of this version and another size are converted with all their contents, counters included.
func TestConvertSelf(t *testing.T) {
	table, clock, mem := newTable(t, 100)
	want := map[packet.Tuple]Entry{}
	var hit Hit
	for n := range uint64(100) {
		e := churnEntry(n)
		e.Owner, e.Cluster, e.Policy, e.Counts = n%5, n*3, uint32(n*7), [2]Count{{n, 1}, {0, 0}}
		mustInsert(t, table, &e)
		if n%2 == 0 {
			table.Lookup(&e.Reply, tcp(packet.ACK), &hit)
			table.Count(&hit, 1000, packet.Segment{})
			e.Counts[Reply] = Count{1000, 1}
		}
		want[e.Orig] = e
	}
	for _, capacity := range []int{100, 300, 100, 60} {
		if Serves(mem, capacity) != (capacity == len(mem[headerSize:])/(slotSize+ledgerSize)) {
			t.Errorf("a table for %d flows is said to serve for %d, or not to for its own size", len(table.slots), capacity)
		}
		fresh := newMem(capacity)
		again, err := Convert(mem, fresh, Options{Clock: clock.read})
		if err != nil {
			t.Fatal(err)
		}
		s := again.Stats()
		if s.Kept != min(100, capacity) || s.Unfit != 100-s.Kept || s.Owners != 5 {
			t.Errorf("capacity %d: stats %+v", capacity, s)
		}
		replied := 0
		again.Range(func(e *Entry, i Info) bool {
			w := want[e.Orig]
			w.Segment, w.Checked = packet.Segment{}, 0
			if *e != w {
				t.Errorf("capacity %d: got %+v, want %+v", capacity, *e, w)
			}
			if i.State != Unreplied && i.State != SynSent {
				replied++
			}
			return true
		})
		if replied != 50 {
			t.Errorf("capacity %d: %d of the 50 flows that were answered are there", capacity, replied)
		}
		table, mem = again, fresh
	}
}

// TestConvertStrange: memory that is no flow table's becomes an empty table, and Stats says so. None of it is believed.
func TestConvertStrange(t *testing.T) {
	of := func(name string, f func(h *header)) []byte {
		mem := golden(t, name)
		f((*header)(unsafe.Pointer(&mem[0])))
		return mem
	}
	spoilt := func(f func(h *header)) []byte { return of("v1.image.gz", f) }
	random := aligned(10000)
	r := rand.New(rand.NewPCG(1, 1))
	for i := range random {
		random[i] = byte(r.Uint32())
	}
	for name, c := range map[string]struct {
		old  []byte
		lost bool
	}{
		"nothing":       {nil, true},
		"short":         {aligned(100), true},
		"random":        {random, true},
		"magic":         {spoilt(func(h *header) { h.magic.Add(1) }), true},
		"version 0":     {spoilt(func(h *header) { h.version.Store(0) }), true},
		"newer version": {spoilt(func(h *header) { h.version.Store(version + 1) }), true},
		"slot size":     {spoilt(func(h *header) { h.slotSize.Store(64) }), true},
		"slot size, v2": {of("v2.image.gz", func(h *header) { h.slotSize.Store(64) }), true},
		"v1 as v2":      {spoilt(func(h *header) { h.version.Store(2) }), true},
		"short, v2":     {golden(t, "v2.image.gz")[:headerSize+64*128], true},
		"no capacity":   {spoilt(func(h *header) { h.capacity.Store(0) }), true},
		"capacity":      {spoilt(func(h *header) { h.capacity.Store(65) }), true},
		"huge capacity": {spoilt(func(h *header) { h.capacity.Store(1 << 60) }), true},
		"used":          {spoilt(func(h *header) { h.used.Store(1 << 60) }), false},
		"seed":          {spoilt(func(h *header) { h.seed.Add(1) }), false},
	} {
		table, err := Convert(c.old, newMem(100), Options{Clock: (&fakeClock{1008}).read})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if s := table.Stats(); s.Reformatted != c.lost || c.lost && s.Kept != 0 || name == "used" && s.Kept != 42 || name == "seed" && s.Kept != 0 {
			t.Errorf("%s: stats %+v", name, s)
		}
		e := churnEntry(1)
		mustInsert(t, table, &e)
	}
	if _, err := Convert(golden(t, "v1.image.gz"), newMem(10)[:100], Options{}); err == nil {
		t.Error("no error for too little memory")
	}
}

func TestServes(t *testing.T) {
	if !Serves(newMem(10), 10) || Serves(newMem(10), 11) || Serves(nil, 1) || Serves(newMem(10), 0) {
		t.Error("memory with nothing in it serves when it is large enough, and only then")
	}
}

const convertEnv = "FLOW_TEST_CONVERT_CHILD"

// convertChild converts the memory in descriptor 3 into that in descriptor 4, and writes a line when it begins and when
// it is done.
func convertChild() {
	old := mapping(3, len1000)
	mem := mapping(4, Size(1000))
	os.Stdout.WriteString("converting\n")
	if _, err := Convert(old, mem, Options{}); err != nil {
		panic(err)
	}
	os.Stdout.WriteString("done\n")
	_ = unix.Pause() // until killed
}

const len1000 = headerSize + 1000*slotSize

func mapping(fd, size int) []byte {
	mem, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		panic(err)
	}
	return mem
}

// TestConvertSIGKILL kills an agent at any moment of a conversion. The old memory is unchanged afterwards and gives the
// next agent every flow; the new memory is whole once Convert has returned.
func TestConvertSIGKILL(t *testing.T) {
	image := golden(t, "v1.thousand.gz")
	memfd := func(size int) (*os.File, []byte) {
		fd, err := unix.MemfdCreate("flow-test", unix.MFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), "flow-test")
		t.Cleanup(func() { f.Close() })
		if err := f.Truncate(int64(size)); err != nil {
			t.Fatal(err)
		}
		mem := mapping(fd, size)
		t.Cleanup(func() { unix.Munmap(mem) })
		return f, mem
	}
	oldFile, old := memfd(len1000)
	copy(old, image)
	before, after := 0, 0
	for range 40 {
		newFile, mem := memfd(Size(1000))
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), convertEnv+"=1")
		child.ExtraFiles = []*os.File{oldFile, newFile}
		child.Stderr = os.Stderr
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		said := bufio.NewReader(out)
		if _, err := said.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(time.Duration(rand.IntN(1_000_000))); time.Now().Before(end); { // finer than a timer
		}
		child.Process.Kill()
		child.Wait()
		if rest, _ := io.ReadAll(said); string(rest) == "done\n" {
			after++
			if table, err := Open(mem, Options{}); err != nil || table.Stats().Kept != 1000 || table.Stats().Discarded != 0 {
				t.Fatalf("what Convert made is not whole: %+v, %v", table.Stats(), err)
			}
		} else {
			before++
		}
		if !bytes.Equal(old, image) {
			t.Fatal("the old memory was changed")
		}
	}
	t.Logf("killed %d times before the end, %d times after", before, after)
	table, err := Convert(old, newMem(1000), Options{})
	if err != nil || table.Stats().Kept != 1000 {
		t.Fatalf("the old memory is not whole: %+v, %v", table.Stats(), err)
	}
}
