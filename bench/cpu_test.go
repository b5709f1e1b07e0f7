package bench

import (
	"strings"
	"testing"
	"time"

	"tapestry.dev/tapestry/test/await"
)

func TestParseBusy(t *testing.T) {
	for _, tt := range []struct {
		stat, fails string
		want        time.Duration
	}{
		{stat: "cpu  100 10 50 1000 500 5 35 77 0 0\ncpu0 1 2 3 4 5 6 7 8\n", want: 2 * time.Second},
		{stat: "cpu  0 0 0 0 0 0 0 0 0 0", want: 0},
		{stat: "", fails: "expected a line"},
		{stat: "cpu0 1 2 3 4 5 6 7 8", fails: "expected a line"},
		{stat: "cpu 1 2 3", fails: "expected a line"},
		{stat: "cpu 1 2 x 4 5 6 7 8", fails: "invalid syntax"},
	} {
		got, err := parseBusy(tt.stat)
		if got != tt.want || (err != nil) != (tt.fails != "") || err != nil && !strings.Contains(err.Error(), tt.fails) {
			t.Errorf("%q: got %v, %v; want %v, %q", tt.stat, got, err, tt.want, tt.fails)
		}
	}
}

// The busy time grows while the processor works.
func TestBusyTimeAdvances(t *testing.T) {
	before, err := busyTime()
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(await.Patience); time.Now().Before(end); {
		after, err := busyTime()
		if err != nil {
			t.Fatal(err)
		}
		if after > before {
			return
		}
	}
	t.Errorf("%s of work did not show", await.Patience)
}
