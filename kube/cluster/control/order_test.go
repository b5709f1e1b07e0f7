package control

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"tapestry.dev/tapestry/kube"
)

// written is how many changes are written between two decisions in these tests.
const written = 10

func service(namespace, name string) change {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	return change{s, s}
}

// many returns changes of so many objects in each of so many namespaces, in the order of a snapshot.
func many(namespaces, objects int) (list []change) {
	for i := range namespaces {
		for j := range objects {
			list = append(list, service(fmt.Sprintf("n%05d", i), fmt.Sprintf("s%05d", j)))
		}
	}
	return list
}

// after returns in which decision the change of an object is written that is there from the first of them on, while the
// others change again before each. Each of those has been written before; -1 is for not at all.
func after(o *order, restless []change, wanted change) int {
	write := func(list []change) bool {
		list = o.of(list)[:min(written, len(list))]
		for _, c := range list {
			o.tried(kube.RefOf(c.now))
		}
		return slices.Contains(list, wanted)
	}
	for range 2*len(restless)/written + 2 {
		write(restless)
	}
	at, _ := slices.BinarySearchFunc(restless, wanted, func(a, b change) int { return kube.RefOf(a.now).Compare(kube.RefOf(b.now)) })
	for i := range 1000 {
		if write(slices.Insert(slices.Clone(restless), at, wanted)) {
			return i
		}
	}
	return -1
}

// TestRestlessStarveNobody: whatever changes all the time, another object is written at the first decision after it
// changed.
func TestRestlessStarveNobody(t *testing.T) {
	for name, tt := range map[string]struct {
		restless []change
		wanted   change
	}{
		"objects of the same namespace":                   {many(1, 400), service("n00000", "t")},
		"one object in each of many namespaces":           {many(400, 1), service("o", "s")},
		"the same, and one in a namespace that is theirs": {many(400, 1), service("n00399", "t")},
		"many in many":   {many(60, 10), service("n00059", "t")},
		"a few":          {many(3, 3), service("z", "z")},
		"cluster-scoped": {many(200, 1), service("", "pool")},
		"none":           {nil, service("a", "a")},
	} {
		if got := after(new(order), tt.restless, tt.wanted); got != 0 {
			t.Errorf("%s: it is written at decision %d after it changed", name, got)
		}
	}
}

// TestAllTakeTurns: of those that change all the time, each is written as often as the others of its namespace, and
// each namespace as often as the others.
func TestAllTakeTurns(t *testing.T) {
	var o order
	list := append(many(1, 200), many(41, 1)[1:]...)
	count, rounds := map[kube.Ref]int{}, 200
	for range rounds {
		for _, c := range o.of(list)[:written] {
			o.tried(kube.RefOf(c.now))
			count[kube.RefOf(c.now)]++
		}
	}
	for _, c := range list {
		ref, least := kube.RefOf(c.now), rounds*written/2/len(list)-1
		if ref.Namespace != "n00000" {
			least = rounds*written/2/41 - 1
		}
		if count[ref] < least {
			t.Errorf("%s was written %d times, want %d", ref, count[ref], least)
		}
	}
}

// TestNewNamesStarveNobody: who makes new objects without end, in as many namespaces as are written between two
// decisions, leaves every other write to those that are there.
func TestNewNamesStarveNobody(t *testing.T) {
	var o order
	old := many(40, 1)
	count := map[string]int{}
	for i := range 50 {
		list := slices.Clone(old)
		for j := range 2 * written {
			list = append(list, service(fmt.Sprintf("x%03d", j), fmt.Sprintf("new-%d", i)))
		}
		for _, c := range o.of(list)[:written] {
			o.tried(kube.RefOf(c.now))
			count[c.now.GetNamespace()]++
		}
	}
	for _, c := range old {
		if n := count[c.now.GetNamespace()]; n < 50*written/2/(len(old)+2*written)-1 {
			t.Errorf("%s was written %d times", c.now.GetNamespace(), n)
		}
	}
}

// TestOrderIsComplete: every change is in the order once, whatever was written before, and what nobody has written yet
// is written in turns of one for each namespace.
func TestOrderIsComplete(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var o order
		list := many(1+r.IntN(5), 1+r.IntN(5))
		for range r.IntN(30) {
			o.tried(kube.RefOf(list[r.IntN(len(list))].now))
		}
		got := o.of(list)
		if len(got) != len(list) {
			t.Fatalf("%d changes of %d", len(got), len(list))
		}
		for _, c := range list {
			if !slices.Contains(got, c) {
				t.Fatalf("%s is missing", kube.RefOf(c.now))
			}
		}
	}
	text := ""
	for _, c := range new(order).of(many(2, 3)) {
		text += c.now.GetNamespace()[5:] + c.now.GetName()[5:] + " "
	}
	if text != "00 10 01 11 02 12 " {
		t.Errorf("got %s", text)
	}
}

// TestForget: what is remembered has a bound, and what is forgotten comes first.
func TestForget(t *testing.T) {
	var o order
	for i := range 10 * rememberLeast {
		o.tried(kube.RefOf(service(fmt.Sprint(i), "s").now))
		o.of(nil)
	}
	if n := len(o.objects); n > rememberLeast || n < rememberLeast/2-1 || len(o.namespaces) != n {
		t.Errorf("%d objects and %d namespaces are remembered", len(o.objects), len(o.namespaces))
	}
	last := service(fmt.Sprint(10*rememberLeast-1), "s")
	if got := o.of([]change{last, service("0", "s")}); got[1] != last {
		t.Error("the one that was written last comes first")
	}
}
