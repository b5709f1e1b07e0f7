package localapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"tapestry.dev/tapestry/counter"
	"tapestry.dev/tapestry/fdpass"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve runs a Server until the test ends.
func serve(t *testing.T, s *Server) *Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "api.sock")
	l, err := Listen(path, s.Options)
	if err != nil {
		t.Fatal(err)
	}
	s.Options.Log = slog.New(slog.DiscardHandler)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return &Client{Path: path}
}

func TestNode(t *testing.T) {
	want := Node{
		Name: "n1", Version: "v1", Started: time.Unix(1000, 0).UTC(), PublicKey: "key=", Missing: []string{"packets: lost"}, Source: "manifests in /m",
		HostTAP: true, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}, MTU: 1420,
	}
	c := serve(t, &Server{Node: func(context.Context) Node { return want }})
	if got, err := c.Node(t.Context()); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
}

// A table of any length arrives complete, as it was when it was asked for.
func TestRows(t *testing.T) {
	long := strings.Repeat("x", 1000)
	for _, n := range []int{0, 1, 50, 5000} {
		var asked atomic.Int32
		c := serve(t, &Server{Tables: []Source{Peers.From(nil), Problems.From(func(context.Context) ([]Problem, error) {
			asked.Add(1)
			var list []Problem
			for i := range n {
				list = append(list, Problem{"error", fmt.Sprint(i, " <&> ", long)})
			}
			return list, nil
		})}})
		got, err := Problems.Ask(t.Context(), c)
		if err != nil || len(got) != n || asked.Load() != 1 {
			t.Fatalf("%d rows, want %d, asked for %d times: %v", len(got), n, asked.Load(), err)
		}
		for i, p := range got {
			if p.Severity != "error" || p.Text != fmt.Sprint(i, " <&> ", long) {
				t.Fatalf("row %d is %+v", i, p)
			}
		}
	}
}

// TestAnswers: a table that answers a question gets it, and another one takes none.
func TestAnswers(t *testing.T) {
	c := serve(t, &Server{Tables: []Source{
		Problems.From(func(context.Context) ([]Problem, error) { return []Problem{{Text: "told"}}, nil }),
		Explanations.Answers(func(_ context.Context, args []string) ([]Explanation, error) {
			return []Explanation{{Verdict: strings.Join(args, " ")}}, nil
		}),
	}})
	if got, err := Explanations.Ask(t.Context(), c, "a", "b:80"); err != nil || len(got) != 1 || got[0].Verdict != "a b:80" {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := Problems.Ask(t.Context(), c, "a"); err != nil || len(got) != 1 || got[0].Text != "told" {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestRefused(t *testing.T) {
	huge := func(context.Context) ([]Problem, error) {
		return []Problem{{Text: strings.Repeat("x", fdpass.MaxMessage)}}, nil
	}
	c := serve(t, &Server{Tables: []Source{Problems.From(huge), Peers.From(func(context.Context) ([]Peer, error) { return nil, errors.New("no tunnel") })}})
	for want, err := range map[string]error{
		`there is no table "pods": expected one of problems, peers`: func() error { _, err := Pods.Ask(t.Context(), c); return err }(),
		"does not fit a message":                                    func() error { _, err := Problems.Ask(t.Context(), c); return err }(),
		"table peers: no tunnel":                                    func() error { _, err := Peers.Ask(t.Context(), c); return err }(),
		`unknown request "x"`: func() error {
			conn, err := c.dial(t.Context())
			if err != nil {
				return err
			}
			defer conn.Close()
			_, err = exchange(t.Context(), conn, request{Op: "x"})
			return err
		}(),
	} {
		if err == nil || !strings.Contains(err.Error(), want) || errors.Is(err, ErrUnavailable) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	// Without a table asked for there are no more rows, and a descriptor that comes with a request is closed.
	conn, err := c.dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	fd, err := fdpass.Dup(w)
	if err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	var a answer
	if _, err := conn.Call(t.Context(), request{Op: opMore}, &a, fd); err != nil || a.Error != "" || len(a.Rows) != 0 || a.More {
		t.Errorf("got %+v, %v", a, err)
	}
	fdpass.CloseAll([]int{fd})
	if n, err := r.Read(make([]byte, 1)); n != 0 || err == nil { // io.EOF: nobody has the other end open
		t.Errorf("read %d, %v", n, err)
	}
}

func TestUnavailable(t *testing.T) {
	c := &Client{Path: filepath.Join(t.TempDir(), "nobody")}
	if _, err := c.Node(t.Context()); !errors.Is(err, ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	if _, err := c.Counters(t.Context()); !errors.Is(err, ErrUnavailable) {
		t.Errorf("got %v", err)
	}
}

// Only the socket's own user may connect, unless others are named.
func TestListen(t *testing.T) {
	for _, tc := range []struct {
		uids []uint32
		want os.FileMode
	}{{nil, 0o600}, {[]uint32{0, uint32(os.Geteuid())}, 0o600}, {[]uint32{0, 65533}, 0o666}} {
		path := filepath.Join(t.TempDir(), "api.sock")
		l, err := Listen(path, Options{UIDs: tc.uids})
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != tc.want {
			t.Errorf("%v: %v, %v, want %v", tc.uids, info.Mode(), err, tc.want)
		}
		_ = l.Close()
	}
}

// A user who is not named is told so, and gets no answer.
func TestStrangers(t *testing.T) {
	c := serve(t, &Server{Node: func(context.Context) Node { return Node{Name: "n1"} }, Options: Options{UIDs: []uint32{uint32(os.Geteuid()) + 1}}})
	if n, err := c.Node(t.Context()); err == nil || !strings.Contains(err.Error(), "may not use") {
		t.Errorf("got %+v, %v", n, err)
	}
}

func TestCells(t *testing.T) {
	at := netip.MustParseAddrPort("192.0.2.2:51820")
	for _, tc := range []struct {
		got  []string
		want string
	}{
		{Peers.Cells(&Peer{Name: "n2", PublicKey: "k", Endpoint: at, HandshakeAge: 61 * time.Second, AnswerAge: time.Second, MTU: 1440, Received: 1500, Sent: 999}),
			"n2|192.0.2.2:51820|1m1s ago|1s ago|1440|1.5 kB|999 B"},
		{Peers.Cells(&Peer{Name: "n3", PublicKey: "k", HandshakeAge: -1, AnswerAge: -1}), "n3|never heard|never|never|0|0 B|0 B"},
		{Peers.Cells(&Peer{Name: "n4", HandshakeAge: -1, AnswerAge: -1})[:2], "n4|has announced no key"},
		{Pods.Cells(&Pod{Name: "d/p", Addrs: []netip.Addr{at.Addr()}, FromBytes: 2_500_000, ToBytes: 5e15, Lost: 7, OverLimit: 8, FlowsPerSecond: 5, OverFlows: 3, Offloads: "csum"}),
			"d/p|192.0.2.2|2.5 MB|5000.0 TB|7|8|-|3 (5/s)|csum"},
		{DescriptorShares.Cells(&DescriptorShare{For: "pods", Most: 7}), "7|pods"},
		{counterCells(new(counter.One(counter.Gauge, "a", "b", 1.5))), "a|1.5|b"},
		{counterCells(new(counter.By(counter.Total, "a", "b", "l", map[string]int{"x": 3, "y": 0, "z": 1}))), "a|x=3 z=1|b"},
		{counterCells(new(counter.By(counter.Total, "a", "b", "l", map[string]int{"x": 0}))), "a|none|b"},
		{counterCells(&counter.Counter{Name: "a", Kind: counter.Distribution, Values: []counter.Value{{N: 2.5, Count: 3}}}), "a|3, together 2.5|"},
	} {
		if got := strings.Join(tc.got, "|"); got != tc.want {
			t.Errorf("got %s, want %s", got, tc.want)
		}
	}
	for _, table := range []struct{ columns, cells []string }{
		{Peers.Columns, Peers.Cells(&Peer{})}, {Pods.Columns, Pods.Cells(&Pod{})}, {Problems.Columns, Problems.Cells(&Problem{})},
		{DescriptorShares.Columns, DescriptorShares.Cells(&DescriptorShare{})},
		{Counters.Columns, Counters.Cells(&counter.Counter{})},
	} {
		if len(table.columns) != len(table.cells) {
			t.Errorf("%d headings for %d cells: %q, %q", len(table.columns), len(table.cells), table.columns, table.cells)
		}
	}
}

// Every table has a name and says what is in it.
func TestAll(t *testing.T) {
	seen := map[string]bool{}
	for _, table := range All {
		name, help := table.Is()
		if name == "" || help == "" || seen[name] {
			t.Errorf("%q: %q", name, help)
		}
		seen[name] = true
	}
	// Fetch returns the rows in a form that other programs can read.
	c := serve(t, &Server{Tables: []Source{Peers.From(func(context.Context) ([]Peer, error) { return []Peer{{Name: "n2", AnswerAge: -1}}, nil })}})
	rows, headings, cells, err := Peers.Fetch(t.Context(), c)
	text, _ := json.Marshal(rows)
	if err != nil || !strings.Contains(string(text), `"answerAge":-1`) || headings[0] != "PEER" || cells[0][0] != "n2" {
		t.Errorf("%s, %q, %q, %v", text, headings, cells, err)
	}
}
