package bench

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tapestry.dev/tapestry/bench/load"
	"tapestry.dev/tapestry/netstack/tap"
)

// paper is a Topology that has only a name.
type paper string

func (p paper) Name() string         { return string(p) }
func (paper) Client() *tap.Namespace { return nil }
func (paper) Server() *tap.Namespace { return nil }
func (paper) Close() error           { return nil }
func (paper) Target(Service) (netip.AddrPort, bool) {
	return netip.AddrPort{}, true
}

func TestMedian(t *testing.T) {
	for _, tt := range []struct {
		v    []float64
		want float64
	}{
		{[]float64{3}, 3},
		{[]float64{1, 2}, 1.5},
		{[]float64{9, 1, 5}, 5},
		{[]float64{4, 100, 1, 2}, 3},
		{[]float64{0, 0, 0}, 0},
	} {
		before := append([]float64(nil), tt.v...)
		if got := median(tt.v); got != tt.want {
			t.Errorf("median of %v: got %v, want %v", tt.v, got, tt.want)
		}
		if !cmp.Equal(before, tt.v) {
			t.Errorf("median reordered %v to %v", before, tt.v)
		}
	}
}

// sampleRows returns rows of two subjects with known figures, and of one without a baseline.
func sampleRows() []Row {
	c := Case{Name: "rr", Metrics: []Metric{
		{Name: " p50", Unit: "us", Value: func(r Sample) float64 { return float64(r.Latency.P50) / 1e3 }},
		{Name: " rate", Unit: "1/s", Higher: true, Value: func(r Sample) float64 { return r.PerSecond }},
	}}
	p := Plan{
		Suite: "path", Topologies: []Topology{paper("base"), paper("ours"), paper("zero")}, Cases: []Case{c},
		Baselines: map[string][]string{"ours": {"base", "zero"}, "base": {"zero"}},
	}
	s := make(samples)
	for _, v := range []int64{40e3, 20e3, 90e3} {
		s.add("base", c, Sample{Result: load.Result{PerSecond: 10, Latency: &load.Latency{P50: v}}})
		s.add("ours", c, Sample{Result: load.Result{PerSecond: 15, Latency: &load.Latency{P50: v * 2}}})
		s.add("zero", c, Sample{Result: load.Result{Latency: &load.Latency{}}})
	}
	return s.rows(p)
}

func TestRows(t *testing.T) {
	want := []Row{
		{Suite: "path", Case: "rr p50", Subject: "base", Value: 40, Unit: "us", Baseline: "zero", Min: 20, Max: 90, N: 3},
		{Suite: "path", Case: "rr p50", Subject: "ours", Value: 80, Unit: "us", Baseline: "base", BaselineValue: 40, Ratio: 2, Min: 40, Max: 180, N: 3},
		{Suite: "path", Case: "rr p50", Subject: "ours", Value: 80, Unit: "us", Baseline: "zero", Min: 40, Max: 180, N: 3},
		{Suite: "path", Case: "rr p50", Subject: "zero", Unit: "us", N: 3},
		{Suite: "path", Case: "rr rate", Subject: "base", Value: 10, Unit: "1/s", Higher: true, Baseline: "zero", Min: 10, Max: 10, N: 3},
		{Suite: "path", Case: "rr rate", Subject: "ours", Value: 15, Unit: "1/s", Higher: true, Baseline: "base", BaselineValue: 10, Ratio: 1.5, Min: 15, Max: 15, N: 3},
		{Suite: "path", Case: "rr rate", Subject: "ours", Value: 15, Unit: "1/s", Higher: true, Baseline: "zero", Min: 15, Max: 15, N: 3},
		{Suite: "path", Case: "rr rate", Subject: "zero", Unit: "1/s", Higher: true, N: 3},
	}
	if diff := cmp.Diff(want, sampleRows()); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}
}

func TestWriteJSON(t *testing.T) {
	var b bytes.Buffer
	rows := sampleRows()
	if err := WriteJSON(&b, rows); err != nil {
		t.Fatal(err)
	}
	var got []Row
	for line := range strings.Lines(b.String()) {
		var r Row
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatal(err)
		}
		got = append(got, r)
	}
	if diff := cmp.Diff(rows, got); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}
}

func TestWriteCSV(t *testing.T) {
	var b bytes.Buffer
	rows := sampleRows()
	if err := WriteCSV(&b, rows); err != nil {
		t.Fatal(err)
	}
	lines, err := csv.NewReader(&b).ReadAll()
	if err != nil || len(lines) != len(rows)+1 {
		t.Fatalf("%d lines, %v", len(lines), err)
	}
	var object map[string]any
	j, _ := json.Marshal(rows[0])
	json.Unmarshal(j, &object)
	for _, name := range lines[0] {
		if _, ok := object[name]; !ok {
			t.Errorf("column %q is no name of the JSON", name)
		}
	}
	want := []string{"path", "rr p50", "ours", "80", "us", "false", "base", "40", "2", "40", "180", "3"}
	if diff := cmp.Diff(want, lines[2]); diff != "" || len(lines[0]) != len(object) {
		t.Errorf("line (-want +got), header %q:\n%s", lines[0], diff)
	}
}

func TestPlanIsChecked(t *testing.T) {
	good := Plan{Topologies: []Topology{paper("a"), paper("b")}, Cases: TCPCases(0), Rounds: 1}
	for name, p := range map[string]Plan{
		"nothing":          {Rounds: 1},
		"no case":          {Topologies: good.Topologies, Rounds: 1},
		"negative rounds":  {Topologies: good.Topologies, Cases: good.Cases, Rounds: -1},
		"twins":            {Topologies: []Topology{paper("a"), paper("a")}, Cases: good.Cases, Rounds: 1},
		"missing baseline": {Topologies: good.Topologies, Cases: good.Cases, Rounds: 1, Baselines: map[string][]string{"a": {"c"}}},
		"bad options":      {Topologies: good.Topologies, Cases: []Case{{Name: "x", Options: load.Options{Streams: -1}}}, Rounds: 1},
	} {
		if _, err := Run(t.Context(), p); err == nil {
			t.Errorf("%s: the plan was accepted", name)
		}
	}
	if err := good.complete(); err != nil {
		t.Error(err)
	}
}
