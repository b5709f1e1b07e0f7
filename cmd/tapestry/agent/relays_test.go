package agent

import (
	"encoding/binary"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/keeper"
	"tapestry.dev/tapestry/netstack/memo"
	"tapestry.dev/tapestry/netstack/tcprelay"
)

// Memory of an agent of another version is left out and replaced, whatever it says of itself; that of this version is
// taken over, in whatever size.
func TestMemoryOfOtherVersions(t *testing.T) {
	put32 := func(at int, v uint32) func([]byte) {
		return func(mem []byte) { binary.NativeEndian.PutUint32(mem[at:], v) }
	}
	for _, c := range []struct {
		name  string
		slots int // of the memory that is found; 0: none is found
		spoil func(mem []byte)
		lost  bool
		want  int // slots afterwards
	}{
		{"none", 0, nil, false, 16},
		{"of this version", 16, func([]byte) {}, false, 16},
		{"of this version, larger", 20, func([]byte) {}, false, 20},
		{"a later version of the layout", 16, put32(8, 2), true, 16},
		{"another meaning of the words", 16, put32(16, tcprelay.MemoryKind+1), true, 16},
		{"more slots than fit", 16, put32(12, 1<<30), true, 16},
		{"no slots", 16, put32(12, 0), true, 16},
		{"garbage", 16, func(mem []byte) {
			for i := range mem {
				mem[i] = byte(i*7 + 1)
			}
		}, true, 16},
	} {
		t.Run(c.name, func(t *testing.T) {
			var found *os.File
			if c.slots > 0 {
				f, err := keeper.NewMemory("test", memo.Size(c.slots))
				if err != nil {
					t.Fatal(err)
				}
				mem, err := keeper.Map(f)
				if err != nil {
					t.Fatal(err)
				}
				m, err := memo.Open(mem, tcprelay.MemoryKind)
				if err != nil {
					t.Fatal(err)
				}
				m.Put(3, &memo.Fixed{1, 2, 3}, new([memo.Live]uint64))
				c.spoil(mem)
				if err := unix.Munmap(mem); err != nil {
					t.Fatal(err)
				}
				found = f
			}
			puts := 0
			m, lost, err := openMemo(found, tcprelay.MemoryKind, 16, func(*os.File) error { puts++; return nil })
			if err != nil {
				t.Fatal(err)
			}
			used := 0
			m.Used(func(uint32) { used++ })
			taken := c.slots > 0 && !c.lost
			if lost != c.lost || m.Len() != c.want || (puts == 0) != taken || (used == 1) != taken {
				t.Errorf("lost %v, %d slots, %d in use, given to the keeper %d times; want lost %v, %d slots, taken over %v", lost, m.Len(), used, puts, c.lost, c.want, taken)
			}
		})
	}
}
