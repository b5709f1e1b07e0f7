package heal

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"tapestry.dev/tapestry/kube"
)

func TestNext(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	const after = 20 * time.Second
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	own := func(since time.Duration) patient { return patient{uid: "own", since: ago(since), own: true} }
	pod := func(uid string, since time.Duration) patient { return patient{uid: uid, since: ago(since)} }
	rests := func(uids ...string) history {
		h := history{after: after, until: map[string]time.Time{}}
		for _, u := range uids {
			h.until[u] = now.Add(time.Second)
		}
		return h
	}
	for what, c := range map[string]struct {
		h    history
		list []patient
		want string
	}{
		"nobody":                        {rests(), nil, ""},
		"too early":                     {rests(), []patient{pod("a", 19*time.Second)}, ""},
		"one":                           {rests(), []patient{pod("a", after)}, "a"},
		"the oldest":                    {rests(), []patient{pod("a", after), pod("b", time.Hour), pod("c", time.Minute)}, "b"},
		"of equal ones the first":       {rests(), []patient{pod("a", after), pod("b", after)}, "a"},
		"the agent's own goes first":    {rests(), []patient{pod("a", time.Hour), own(after)}, "own"},
		"pods wait for the agent's own": {rests(), []patient{pod("a", time.Hour), own(time.Second)}, ""},
		"not when that is refused":      {rests("own"), []patient{own(time.Hour), pod("a", time.Hour)}, "a"},
		"who was refused rests":         {rests("b"), []patient{pod("a", after), pod("b", time.Hour)}, "a"},
		"all rest":                      {rests("a", "own"), []patient{own(time.Hour), pod("a", time.Hour)}, ""},
		"without a UID":                 {rests(), []patient{pod("", time.Hour), {own: true}}, ""},
		"too soon after the last":       {history{after: after, last: ago(evictEvery - 1)}, []patient{pod("a", time.Hour)}, ""},
		"soon after the last":           {history{after: after, last: ago(evictEvery)}, []patient{pod("a", time.Hour)}, "a"},
	} {
		if got, ok := c.h.next(c.list, now); got.uid != c.want || ok != (c.want != "") {
			t.Errorf("%s: %q, %v, want %q", what, got.uid, ok, c.want)
		}
	}
}

// TestNextOverTime has pods break, be refused, evicted and made anew at random. Whatever happens, evictions have their
// distance, nobody is asked for twice within his rest or too early, and in the end everybody was evicted.
func TestNextOverTime(t *testing.T) {
	const after = 20 * time.Second
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 1))
		now := time.Unix(1_800_000_000, 0)
		h := history{after: after}
		var list []patient
		asked := map[string]time.Time{}
		last := time.Time{}
		for i := range 30 {
			list = append(list, patient{pod: kube.Ref{Name: fmt.Sprint(i)}, uid: fmt.Sprint(i), since: now.Add(-time.Duration(r.IntN(60)) * time.Second), own: i == 7})
		}
		for step := 0; len(list) > 0; step++ {
			if step > 20_000 {
				t.Fatalf("seed %d: %d are left for ever", seed, len(list))
			}
			now = now.Add(time.Duration(r.IntN(2000)) * time.Millisecond)
			p, ok := h.next(list, now)
			if !ok {
				continue
			}
			if now.Sub(last) < evictEvery || now.Sub(p.since) < after || now.Sub(asked[p.uid]) < refusedRest {
				t.Fatalf("seed %d: %s is evicted %v after the last one, broken for %v, %v after it was tried", seed, p.uid, now.Sub(last), now.Sub(p.since), now.Sub(asked[p.uid]))
			}
			last, asked[p.uid] = now, now
			h.note(p, now)
			if len(h.until) > 10 {
				t.Fatalf("seed %d: %d are remembered", seed, len(h.until))
			}
			if r.IntN(3) > 0 {
				continue // refused
			}
			for i := range list {
				if list[i].uid == p.uid {
					list = append(list[:i], list[i+1:]...)
					break
				}
			}
		}
	}
}

// TestMark: what is noted for one pod of the agent says nothing of the next.
func TestMark(t *testing.T) {
	path := filepath.Join(t.TempDir(), "whole")
	first := mark{path: path, uid: "a"}
	if first.read(); first.whole {
		t.Error("without a note")
	}
	if err := first.set(); err != nil || !first.whole {
		t.Error(err)
	}
	for uid, want := range map[string]bool{"a": true, "b": false, "": false} {
		m := mark{path: path, uid: uid}
		if m.read(); m.whole != want {
			t.Errorf("pod %q: %v", uid, m.whole)
		}
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil { // cut short
		t.Fatal(err)
	}
	none := mark{path: path}
	if none.read(); none.whole || none.set() != nil || none.whole {
		t.Error("an agent that is in no pod remembers one")
	}
}
