package metrics

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"
)

func scrape(t *testing.T, m *Metrics) string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != 200 {
		t.Fatalf("%d: %s", w.Code, w.Body)
	}
	return w.Body.String()
}

func TestSample(t *testing.T) {
	s := Sample{
		Verdicts: map[string]uint64{"to-port": 7}, Drops: map[string]uint64{"no-route": 2}, Link: map[string]uint64{"sent": 3},
		Flows: map[string]int{"established": 4}, Taps: map[string]int{"csum,tso4": 5}, Peers: map[string]int{"up": 6}, Problems: map[string]int{"error": 8},
		FlowsFull: 9, FlowsCapacity: 10, Services: 11, HostSockets: 12, HostConns: 13, HostSessions: 14,
		Pods: 17, Leases: 18, Resting: 19,
		StateAge: 15 * time.Second, SourceAge: 16 * time.Second,
	}
	for i := range reflect.TypeOf(s).NumField() { // so that a new field cannot be forgotten below
		if reflect.ValueOf(s).Field(i).IsZero() {
			t.Errorf("%s is not set", reflect.TypeOf(s).Field(i).Name)
		}
	}
	m := New("v1", func() (Sample, bool) { return s, true })
	m.Synced(10*time.Millisecond, nil)
	m.Synced(time.Second, errors.New("half"))
	m.Programmed(2 * time.Second)
	got := "\n" + scrape(t, m)
	for _, want := range []string{
		`tapestry_packets_total{verdict="to-port"} 7`, `tapestry_drops_total{reason="no-route"} 2`, `tapestry_link_total{event="sent"} 3`,
		`tapestry_flows{state="established"} 4`, `tapestry_taps{offloads="csum,tso4"} 5`, `tapestry_peers{state="up"} 6`,
		`tapestry_problems{severity="error"} 8`, "tapestry_flows_full_total 9", "tapestry_flows_capacity 10", "tapestry_services 11",
		"tapestry_host_port_sockets 12", `tapestry_host_port_conversations{protocol="tcp"} 13`, `tapestry_host_port_conversations{protocol="udp"} 14`,
		"tapestry_pods 17", "tapestry_address_leases 18", "tapestry_addresses_resting 19",
		"tapestry_state_age_seconds 15", "tapestry_source_age_seconds 16",
		"tapestry_sync_duration_seconds_count 2", "tapestry_sync_failures_total 1", "kubeproxy_sync_proxy_rules_duration_seconds_sum 1.01",
		"tapestry_network_programming_duration_seconds_sum 2", "kubeproxy_network_programming_duration_seconds_count 1",
		`tapestry_build_info{goversion="go`, "kubeproxy_sync_proxy_rules_last_timestamp_seconds 1", "go_goroutines ", "process_open_fds ",
	} {
		if !strings.Contains(got, "\n"+want) {
			t.Errorf("%s is missing", want)
		}
	}
}

func TestNothingYet(t *testing.T) {
	m := New("v1", func() (Sample, bool) { return Sample{}, false })
	got := scrape(t, m)
	if strings.Contains(got, "tapestry_services") || !strings.Contains(got, "tapestry_build_info") {
		t.Errorf("before there is anything to tell:\n%s", got)
	}
}
