package block

import "testing"

// TestBuggies compares the number with a count, one by one.
func TestBuggies(t *testing.T) {
	for _, text := range []string{"192.0.2.0/24", "192.0.2.1-192.0.2.254", "192.0.2.255", "192.0.2.0", "192.0.2.7", "192.0.1.200-192.0.4.0", "192.0.1.255-192.0.4.254", "198.18.0.0/15", "2001:db8::/120"} {
		b, err := Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		want := int64(0)
		for a := b.First; b.Contains(a); a = a.Next() {
			if Buggy(a) {
				want++
			}
		}
		if got := b.Buggies(); got != want {
			t.Errorf("%s: %d, want %d", text, got, want)
		}
	}
}
