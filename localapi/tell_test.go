package localapi

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"strings"
	"sync"
	"testing"

	"tapestry.dev/tapestry/announce"
)

// A table of any length that is told arrives complete, and each time in place of the last.
func TestTell(t *testing.T) {
	var mu sync.Mutex
	var got [][]announce.Claim
	c := serve(t, &Server{Told: []Sink{Claims.To(func(rows []announce.Claim) {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, rows)
	})}})
	claim := announce.Claim{Addr: netip.MustParseAddr("192.0.2.1"), Interface: "eth0", State: announce.Conflict, Problem: strings.Repeat("x", 1000)}
	for i, n := range []int{0, 1, 5000, 2} {
		want := make([]announce.Claim, n)
		for j := range want {
			want[j] = claim
		}
		if err := Claims.Tell(t.Context(), c, want); err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		if len(got) != i+1 || len(got[i]) != n || n > 0 && !reflect.DeepEqual(got[i], want) {
			t.Errorf("told %d rows, got %d tables", n, len(got))
		}
		mu.Unlock()
	}
	for want, rows := range map[string]int{"is too long: expected at most 20000 rows": mostTold + 1} {
		if err := Claims.Tell(t.Context(), c, make([]announce.Claim, rows)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("told %d rows: %v", rows, err)
		}
	}
	if err := Problems.Tell(t.Context(), c, []Problem{{}}); err == nil || !strings.Contains(err.Error(), `nobody may tell the table "problems"`) {
		t.Errorf("told a table of the agent: %v", err)
	}
	conn, err := c.dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := exchange(t.Context(), conn, request{Op: opTell, Table: Claims.Name, Rows: []json.RawMessage{json.RawMessage(`7`)}}); err == nil || !strings.Contains(err.Error(), "row 0 is not a row of this table") {
		t.Errorf("told rubbish: %v", err)
	}
	if n := len(got); n != 4 {
		t.Errorf("%d tables arrived, want 4", n)
	}
}
