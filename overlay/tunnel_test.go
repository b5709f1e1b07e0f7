package overlay

import (
	"testing"

	"tapestry.dev/tapestry/overlay/pathmtu"
)

// innerMTU is held against WireGuard's own padding (device/send.go), for every path MTU.
func TestInnerMTU(t *testing.T) {
	padded := func(n int) int {
		if n > paddingUnit {
			return n - n%paddingUnit + min((n%paddingUnit+15)&^15, paddingUnit)
		}
		return min((n+15)&^15, paddingUnit)
	}
	for path := pathmtu.Small; path <= 9000; path++ {
		for _, overhead := range []int{60, 80} {
			room := path - overhead
			n := innerMTU(path, overhead == 60)
			for k := range n + 1 {
				if padded(k) > room {
					t.Fatalf("path %d: %d bytes grow to %d, room for %d", path, k, padded(k), room)
				}
			}
			if padded(n+1) <= room {
				t.Fatalf("path %d: %d is not the largest", path, n)
			}
			if path%20 == 0 && n != room {
				t.Fatalf("path %d: %d of %d bytes usable", path, n, room)
			}
		}
	}
}
