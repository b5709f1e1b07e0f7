package metrics

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"tapestry.dev/tapestry/counter"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// sample returns a counter of each kind.
func sample() counter.List {
	took := counter.NewHistogram(0.001, 3)
	took.Observe(0.0015)
	took.Observe(1)
	return counter.List{
		counter.By(counter.Total, "tapestry_drops_total", "Dropped.", "reason", map[string]uint64{"no-route": 2, "spoofed": 7}),
		counter.One(counter.Gauge, "tapestry_pods", "Pods.", 3),
		took.Counter("tapestry_took_seconds", "Took."),
	}
}

func scrape(t *testing.T, m *Metrics) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	return w.Code, w.Body.String()
}

func TestMetrics(t *testing.T) {
	m := New(sample)
	code, got := scrape(t, m)
	for _, want := range []string{
		"# HELP tapestry_drops_total Dropped.\n# TYPE tapestry_drops_total counter\n" + `tapestry_drops_total{reason="no-route"} 2`,
		`tapestry_drops_total{reason="spoofed"} 7`, "# TYPE tapestry_pods gauge\ntapestry_pods 3\n", `tapestry_took_seconds_bucket{le="0.001"} 0`,
		`tapestry_took_seconds_bucket{le="0.002"} 1`, `tapestry_took_seconds_bucket{le="+Inf"} 2`, "tapestry_took_seconds_sum 1.0015", "tapestry_took_seconds_count 2",
		"\ngo_goroutines ", "\nprocess_open_fds ",
	} {
		if code != 200 || !strings.Contains(got, want) {
			t.Errorf("%d, %s is missing in\n%s", code, want, got)
		}
	}
	// The local API reports the same.
	list, err := m.Counters()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range sample() {
		if got := list.Find(want.Name); !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
	if list.Get("go_goroutines") < 1 || list.Get("go_memstats_heap_alloc_bytes") < 1000 || list.Find("go_gc_duration_seconds").Kind != counter.Distribution {
		t.Errorf("what the runtime says is missing: %+v", list)
	}
}

// Two counters with one name, and values that do not fit the labels, are mistakes in this program and are reported.
func TestMistakes(t *testing.T) {
	for _, list := range []counter.List{
		{counter.One(counter.Gauge, "a", "x", 1), counter.One(counter.Gauge, "a", "x", 2)},
		{{Name: "a", Help: "x", Kind: counter.Gauge, Labels: []string{"l"}, Values: []counter.Value{{N: 1}}}},
	} {
		m := New(func() counter.List { return list })
		if _, err := m.Counters(); err == nil {
			t.Errorf("%+v is no mistake", list)
		}
		if code, _ := scrape(t, m); code != 500 {
			t.Errorf("%+v: %d", list, code)
		}
	}
}

func TestServe(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	m := New(sample)
	go func() { done <- m.Serve(ctx, l) }()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for path, want := range map[string]int{"/metrics": 200, "/healthz": 404, "/": 404} {
		res, err := client.Get("http://" + l.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, res.Body)
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
