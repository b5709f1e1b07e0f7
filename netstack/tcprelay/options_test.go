package tcprelay

import "testing"

func TestReadOffer(t *testing.T) {
	for _, c := range []struct {
		name string
		o    []byte
		is4  bool
		want offer
	}{
		{"nothing, IPv4", nil, true, offer{mss: 536}},
		{"nothing, IPv6", nil, false, offer{mss: 1220}},
		{"Linux'", []byte{2, 4, 5, 0x64, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7}, true, offer{1380, 7, true, true}},
		{"a scale beyond RFC 7323", []byte{3, 3, 200}, true, offer{536, 14, true, false}},
		{"behind the end", []byte{0, 2, 4, 5, 0x64}, true, offer{mss: 536}},
		{"a length of zero", []byte{2, 0, 2, 4, 5, 0x64}, true, offer{mss: 536}},
		{"cut off", []byte{1, 1, 2, 4, 5}, true, offer{mss: 536}},
		{"no segments at all", []byte{2, 4, 0, 0}, true, offer{mss: minMSS}},
		{"of a wrong length", []byte{2, 3, 5, 3, 3, 2}, true, offer{536, 2, true, false}},
	} {
		if got := readOffer(c.o, c.is4); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

func FuzzReadOffer(f *testing.F) {
	f.Add([]byte{2, 4, 5, 0x64, 1, 3, 3, 7})
	f.Fuzz(func(t *testing.T, o []byte) {
		if got := readOffer(o, true); got.mss < minMSS || got.scale > maxScale {
			t.Errorf("%+v", got)
		}
	})
}

// readOffer reads back what putOffer writes.
func TestPutOffer(t *testing.T) {
	for _, want := range []offer{{1380, ourScale, true, false}, {1380, 0, false, true}} {
		if got := readOffer(putOffer(nil, want.mss, want.scales, want.sacks), true); got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
	}
}
