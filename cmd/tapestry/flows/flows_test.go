package flows

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/urfave/cli/v2"

	"tapestry.dev/tapestry/localapi"
	"tapestry.dev/tapestry/visible/visibletest"
)

func TestLine(t *testing.T) {
	at := time.Date(2026, 1, 1, 1, 4, 13, 123e6, time.UTC)
	web := localapi.FlowEnd{Address: netip.MustParseAddr("10.244.1.10"), Port: 41002, Kind: "pod", Namespace: "shop", Pod: "web"}
	db := localapi.FlowEnd{Address: netip.MustParseAddr("fd00::20"), Port: 5432}
	for want, f := range map[string]localapi.Flow{
		"01:04:13.123 begun    tcp shop/web:41002 -> Service shop/db 10.96.0.7:5432 -> [fd00::20]:5432, by NetworkPolicy shop/db ingress[0]": {
			Event: "begun", Protocol: "tcp", Source: web, Destination: db, Service: "shop/db", Frontend: netip.MustParseAddrPort("10.96.0.7:5432"), Policy: "NetworkPolicy shop/db ingress[0]"},
		"01:04:13.123 refused  tcp shop/web:41002 -> nobody [fd00::20]:5432, no-route": {
			Event: "refused", Protocol: "tcp", Source: web, Destination: localapi.FlowEnd{Address: db.Address, Port: 5432, Kind: "nobody"}, Reason: "no-route"},
		"01:04:13.123 ended    tcp node n1:41002 -> [fd00::20]:5432, TIME_WAIT, sent 100 B in 2 packets, received 5000 B in 3, answered after 1.5ms, lasted 1m0.002s": {
			Event: "ended", Protocol: "tcp", Source: localapi.FlowEnd{Address: web.Address, Port: 41002, Kind: "node", Node: "n1"}, Destination: db, State: "TIME_WAIT",
			SentBytes: 100, SentPackets: 2, ReceivedBytes: 5000, ReceivedPackets: 3, AnswerTime: 1500 * time.Microsecond, Duration: time.Minute + 1500*time.Microsecond},
		"01:04:13.123 resolved udp shop/web:41002: A db.shop.svc.cluster.local. -> NOERROR, 1 records, answered after 200µs": {
			Event: "resolved", Protocol: "udp", Source: web, AnswerTime: 200 * time.Microsecond, DNS: &localapi.FlowDNS{Name: "db.shop.svc.cluster.local.", Type: "A", Code: "NOERROR", Answers: 1}},
	} {
		if f.Time = at; line(&f) != want {
			t.Errorf("%s, want\n%s", line(&f), want)
		}
	}
}

// Lost events are told once, apart from those that are printed.
func TestLostIsTold(t *testing.T) {
	var out, told bytes.Buffer
	p := printer{out: &out, told: &told, json: true}
	for _, lost := range []uint64{0, 3, 3, 10} {
		if err := p.print(&localapi.Flow{Event: "begun"}, lost); err != nil {
			t.Fatal(err)
		}
	}
	if got := told.String(); got != "3 events were lost, as more happened than was read\n7 events were lost, as more happened than was read\n" {
		t.Errorf("told %q", got)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 4 {
		t.Fatalf("%d lines, want 4", len(lines))
	}
	for _, l := range lines {
		if f := (localapi.Flow{}); json.Unmarshal([]byte(l), &f) != nil || f.Event != "begun" {
			t.Errorf("%q is no event", l)
		}
	}
}

// Whatever is written in names, no control byte gets to the terminal.
func TestHostile(t *testing.T) {
	var f localapi.Flow
	visibletest.Fill(&f)
	for _, format := range []bool{false, true} {
		var out bytes.Buffer
		p := printer{out: &out, told: &out, json: format}
		if err := p.print(&f, 1); err != nil {
			t.Fatal(err)
		}
		visibletest.Check(t, "an event", out.String())
	}
}

func TestFlags(t *testing.T) {
	for want, args := range map[string][]string{
		"--port 70000 is not a port":   {"--port", "70000"},
		`--address "x" is neither`:     {"--address", "x"},
		"check that the agent runs on": {"--address", "10.0.0.1", "--port", "80"},
	} {
		app := &cli.App{Commands: []*cli.Command{Command()}, ExitErrHandler: func(*cli.Context, error) {}}
		err := app.Run(append([]string{"tapestry", "flows", "--socket", t.TempDir() + "/none"}, args...))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %s", args, err, want)
		}
		if want == "check that the agent runs on" && !errors.Is(err, localapi.ErrUnavailable) {
			t.Errorf("%v is not that the agent is away", err)
		}
	}
}
