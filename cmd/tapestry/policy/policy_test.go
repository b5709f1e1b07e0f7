package policy

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"tapestry.dev/tapestry/localapi"
	"tapestry.dev/tapestry/visible/visibletest"
)

func TestEnds(t *testing.T) {
	want := []string{"a", "b:80"}
	for _, args := range [][]string{{"a", "b:80"}, {"a", "->", "b:80"}, {"a -> b:80"}, {"a->b:80"}} {
		if got, err := ends(args); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %q, %v", args, got, err)
		}
	}
	for _, args := range [][]string{nil, {"a"}, {"a", "->"}, {"a", "b", "c"}} {
		if got, err := ends(args); err == nil {
			t.Errorf("%q: %q", args, got)
		}
	}
}

// TestHostile: whatever is written in names, no control byte gets to the terminal.
func TestHostile(t *testing.T) {
	var rows []localapi.Policy
	visibletest.Fill(&rows)
	var out strings.Builder
	if err := printStatus(&out, rows); err != nil {
		t.Fatal(err)
	}
	visibletest.Check(t, "status", out.String())
	var e localapi.Explanation
	visibletest.Fill(&e)
	out.Reset()
	printExplanation(&out, &e)
	visibletest.Check(t, "explain", out.String())
}

// TestPrintExplanation: what is said of a flow that is denied, of one that staged policies would deny, and of one that
// nobody judges.
func TestPrintExplanation(t *testing.T) {
	e := localapi.Explanation{
		Verdict: "denied", Would: "denied",
		From: localapi.Explained{End: "shop/till", Addr: netip.MustParseAddr("10.244.1.3"), Pod: "shop/till", Node: "n1", Now: localapi.Judged{Verdict: "permitted"}, Staged: &localapi.Judged{Verdict: "permitted"}},
		To: localapi.Explained{End: "shop/db:80", Addr: netip.MustParseAddr("10.244.2.3"), Pod: "shop/db", Node: "n2",
			Now:    localapi.Judged{Verdict: "denied", Policies: []string{"NetworkPolicy shop/a", "NetworkPolicy shop/b"}, Rule: "NetworkPolicy shop/a ingress", Change: "no rule permits it"},
			Staged: &localapi.Judged{Verdict: "denied", Policies: []string{"NetworkPolicy shop/c"}, Rule: "NetworkPolicy shop/c ingress", Change: "no rule permits it either"}},
	}
	want := `shop/till (10.244.1.3) -> shop/db:80 (10.244.2.3): denied
egress of shop/till on node n1: permitted
    no policy selects it
ingress of shop/db on node n2: denied
    selected by NetworkPolicy shop/a, NetworkPolicy shop/b
    decided by NetworkPolicy shop/a ingress
    no rule permits it
  with the staged policies: denied
    selected by NetworkPolicy shop/c
    decided by NetworkPolicy shop/c ingress
    no rule permits it either
`
	var out strings.Builder
	if printExplanation(&out, &e); out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
	e = localapi.Explanation{
		Verdict: "permitted", Would: "denied",
		From: localapi.Explained{End: "192.0.2.1", Addr: netip.MustParseAddr("192.0.2.1"), Now: localapi.Judged{Verdict: "permitted"}},
		To: localapi.Explained{End: "shop/db:80", Addr: netip.MustParseAddr("10.244.2.3"), Pod: "shop/db", Now: localapi.Judged{Verdict: "permitted"},
			Staged: &localapi.Judged{Verdict: "denied", Policies: []string{"NetworkPolicy shop/c"}, Rule: "NetworkPolicy shop/c ingress"}},
	}
	want = `192.0.2.1 (192.0.2.1) -> shop/db:80 (10.244.2.3): permitted
if the staged policies were enforced: denied
egress: nothing is judged, since no pod that policies know is at 192.0.2.1
ingress of shop/db: permitted
    no policy selects it
  with the staged policies: denied
    selected by NetworkPolicy shop/c
    decided by NetworkPolicy shop/c ingress
`
	out.Reset()
	if printExplanation(&out, &e); out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}
