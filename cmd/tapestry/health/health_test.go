package health

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// node is the source of a Health.
type node struct {
	now, updated time.Time
	alive        error
	eligible     bool
	checks       map[string]error
	ran          []string
}

func (n *node) health(names ...string) *Health {
	o := Options{
		Alive: func() error { return n.alive }, Eligible: func() bool { return n.eligible },
		Updated: func() time.Time { return n.updated }, Now: func() time.Time { return n.now },
	}
	for _, name := range names {
		o.Ready = append(o.Ready, Check{Name: name, Run: func(context.Context) error {
			n.ran = append(n.ran, name)
			return n.checks[name]
		}})
	}
	return New(o)
}

func get(h *Health, path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return w
}

func TestKubeProxy(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	old, never := now.Add(-time.Hour), time.Time{}
	for name, tt := range map[string]struct {
		alive          error
		eligible       bool
		updated        time.Time
		healthz, livez int
		told           time.Time // when the node was updated, as reported
	}{
		"well":             {nil, true, old, 200, 200, now},
		"being deleted":    {nil, false, old, 503, 200, now},
		"not begun":        {nil, true, never, 503, 200, never},
		"stuck":            {errors.New("stuck"), true, old, 503, 503, old},
		"deleted and dead": {errors.New("stuck"), false, old, 503, 503, old},
	} {
		n := &node{now: now, updated: tt.updated, alive: tt.alive, eligible: tt.eligible}
		h := n.health()
		for path, want := range map[string]int{"/healthz": tt.healthz, "/livez": tt.livez} {
			w := get(h, path)
			var reply struct{ LastUpdated, CurrentTime time.Time }
			if err := json.Unmarshal(w.Body.Bytes(), &reply); err != nil {
				t.Fatal(err)
			}
			if w.Code != want || !reply.LastUpdated.Equal(tt.told) || !reply.CurrentTime.Equal(now) {
				t.Errorf("%s: %s answers %d %s, want %d, updated %v", name, path, w.Code, w.Body, want, tt.told)
			}
			if (tt.alive != nil) != strings.Contains(w.Body.String(), "stuck") {
				t.Errorf("%s: %s does not say what is wrong: %s", name, path, w.Body)
			}
		}
	}
}

func TestReady(t *testing.T) {
	n := &node{now: time.Unix(1000, 0), checks: map[string]error{"keeper": errors.New("gone")}}
	h := n.health("cluster", "keeper", "packets")
	w := get(h, "/readyz")
	want := "[+]cluster ok\n[-]keeper failed: gone\n[-]packets failed: not checked after a failure of keeper\n"
	if w.Code != 503 || w.Body.String() != want {
		t.Errorf("got %d %s, want 503 %s", w.Code, w.Body, want)
	}
	n.checks = nil
	if w = get(h, "/readyz"); w.Code != 503 || len(n.ran) != 2 {
		t.Errorf("within the same second: %d, and %v were run", w.Code, n.ran)
	}
	if missing := h.Missing(t.Context()); len(missing) != 2 || missing[0] != "keeper: gone" {
		t.Errorf("missing is %q", missing)
	}
	n.now = n.now.Add(checkRest)
	if w = get(h, "/readyz"); w.Code != 200 || len(h.Missing(t.Context())) != 0 {
		t.Errorf("all works, yet %d %s", w.Code, w.Body)
	}
}

// A client that goes away while the checks run must not make the node unready for others.
func TestReadyOfAClientThatIsGone(t *testing.T) {
	n := &node{now: time.Unix(1000, 0)}
	h := n.health()
	h.opts.Ready = []Check{{Name: "packets", Run: func(ctx context.Context) error { return ctx.Err() }}}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if missing := h.Missing(gone); len(missing) != 1 {
		t.Errorf("the check was not told: %v", missing)
	}
	if missing := h.Missing(t.Context()); len(missing) != 0 {
		t.Errorf("somebody else's haste is remembered: %v", missing)
	}
}

// What a check says beside its success is asked for once: it may have ended by the next time.
func TestNote(t *testing.T) {
	n := &node{now: time.Unix(1000, 0)}
	h := n.health()
	notes := []string{"old", "", ""}
	h.opts.Ready = []Check{{Name: "cluster", Run: func(context.Context) error { return nil }, Note: func() (note string) {
		note, notes = notes[0], notes[1:]
		return note
	}}, {Name: "keeper", Run: func(context.Context) error { return nil }}}
	for _, want := range []string{"[+]cluster ok: old\n[+]keeper ok\n", "[+]cluster ok\n[+]keeper ok\n"} {
		if got := get(h, "/readyz").Body.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestServe(t *testing.T) {
	n := &node{now: time.Unix(1000, 0), updated: time.Unix(999, 0), eligible: true}
	h := n.health()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- h.Serve(ctx, l) }()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for path, want := range map[string]int{"/healthz": 200, "/readyz": 200, "/metrics": 404, "/": 404} {
		res, err := client.Get("http://" + l.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != want {
			t.Errorf("%s: %d, want %d", path, res.StatusCode, want)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
