package translate

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"tapestry.dev/tapestry/kube"
)

// needy returns an Ingress that names Secrets s0, s1 and so on, n of them from number first on. Its age grows with old.
func needy(namespace, name string, old, first, n int) *networkingv1.Ingress {
	obj := &networkingv1.Ingress{ObjectMeta: metav1.ObjectMeta{
		Namespace: namespace, Name: name, CreationTimestamp: metav1.NewTime(time.Unix(1_000_000-int64(old), 0)),
	}}
	for i := range n {
		obj.Spec.TLS = append(obj.Spec.TLS, networkingv1.IngressTLS{Hosts: []string{"www.example.com"}, SecretName: fmt.Sprintf("s%d", first+i)})
	}
	return obj
}

func perNamespace(refs []kube.Ref) map[string]int {
	count := map[string]int{}
	for _, ref := range refs {
		count[ref.Namespace]++
	}
	return count
}

// However many Secrets one namespace names, those of others are read, and each Ingress that is over a limit says so.
func TestSecretsAreShared(t *testing.T) {
	objs := kube.Objects{Ingresses: []*networkingv1.Ingress{needy("modest", "i", 0, 0, 3), needy("whole", "i", 0, 0, 5000)}}
	for i := range 100 {
		objs.Ingresses = append(objs.Ingresses, needy("greedy", fmt.Sprintf("i%03d", i), 100-i, i*100, 100))
	}
	objs.Sort()
	refs := IngressSecrets(&objs)
	want := map[string]int{"modest": 3, "whole": mostSecretsOfIngress, "greedy": mostSecrets - 3 - mostSecretsOfIngress}
	if got := perNamespace(refs); !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if !slices.IsSortedFunc(refs, kube.Ref.Compare) {
		t.Error("they are not sorted")
	}
	for _, told := range []struct{ ingress, want string }{
		{"whole/i", `it names 5000 Secrets, and one Ingress may name 200: those from "s200" on`},
		{"greedy/i000", ""},
		{"greedy/i017", "3 of its Secrets are not read"}, // 17 Ingresses have 100 each, and this one what is left of 1797
		{"greedy/i018", "100 of its Secrets are not read"},
		{"greedy/i099", "100 of its Secrets are not read"},
		{"modest/i", ""},
	} {
		var said []string
		for _, p := range Translate(objs, Options{}).Problems {
			if p.Field == "spec.tls" && p.Object.String() == "Ingress "+told.ingress {
				said = append(said, p.Message)
			}
		}
		if text := strings.Join(said, "; "); told.want == "" && text != "" || !strings.Contains(text, told.want) {
			t.Errorf("%s says %q, want %q", told.ingress, text, told.want)
		}
	}
}

// An Ingress that names one Secret very often has named it once.
func TestSecretNamedOften(t *testing.T) {
	obj := needy("x", "i", 0, 0, 300)
	for i := range obj.Spec.TLS {
		obj.Spec.TLS[i].SecretName = "same"
	}
	if names, left := secretsOf(obj); len(names) != 1 || left != 0 {
		t.Errorf("%q and %d more", names, left)
	}
}

// Nothing is said of a Secret of which the API server has not told yet whether it exists.
func TestAwaitedSecret(t *testing.T) {
	objs := kube.Objects{Ingresses: []*networkingv1.Ingress{needy("x", "i", 0, 0, 1)}}
	objs.Ingresses[0].Spec.IngressClassName = nil
	missing := func(p kube.Problem) bool { return strings.Contains(p.Message, "there is no Secret x/s0") }
	if !slices.ContainsFunc(Translate(objs, Options{}).Problems, missing) {
		t.Error("a Secret that does not exist is not told")
	}
	objs.Awaited = []kube.Ref{{Kind: "Secret", Namespace: "x", Name: "s0"}}
	if slices.ContainsFunc(Translate(objs, Options{}).Problems, missing) {
		t.Error("a Secret that is awaited is told as missing")
	}
}

// allotSlowly gives Secrets one by one, always to a namespace that has the fewest and wants more.
func allotSlowly(wanted map[string]int, most int) map[string]int {
	has := map[string]int{}
	for range most {
		next := ""
		for _, ns := range slices.Sorted(maps.Keys(wanted)) {
			if has[ns] < wanted[ns] && (next == "" || has[ns] < has[next]) {
				next = ns
			}
		}
		if next == "" {
			break
		}
		has[next]++
	}
	return has
}

// allot gives each namespace what giving one by one would, but for the remainder, and the oldest first.
func TestAllot(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		most, wanted := r.IntN(60), map[string]int{}
		var all []claimant
		for ns := range 1 + r.IntN(6) {
			name := fmt.Sprintf("ns%d", ns)
			for i := range 1 + r.IntN(3) {
				c := claimant{ref: kube.Ref{Kind: "Ingress", Namespace: name, Name: fmt.Sprint(i)}, created: time.Unix(int64(-i), 0)}
				for k := range r.IntN(15) {
					c.names = append(c.names, fmt.Sprintf("%d-%d", i, k))
				}
				wanted[name] += len(c.names)
				all = append(all, c)
			}
		}
		r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		given := allot(all, most)
		got, slow := map[string]int{}, allotSlowly(wanted, most)
		for n := range given {
			got[n.namespace]++
		}
		sum := 0
		for ns := range wanted {
			sum += got[ns]
			if d := got[ns] - slow[ns]; d < -1 || d > 1 {
				t.Fatalf("of %d, where %v are wanted, %s got %d, want %d", most, wanted, ns, got[ns], slow[ns])
			}
		}
		if total := min(most, sumOf(wanted)); sum > most || sum < total-len(wanted) {
			t.Fatalf("%d of %d given out, where %v are wanted", sum, most, wanted)
		}
		for _, c := range all { // younger ones have nothing while an older one of the namespace lacks something
			for _, older := range all {
				if older.ref.Namespace == c.ref.Namespace && older.created.Before(c.created) && has(given, c) > 0 && has(given, older) < len(older.names) {
					t.Fatalf("%s has %d and the older %s only %d of %d", c.ref, has(given, c), older.ref, has(given, older), len(older.names))
				}
			}
		}
	}
}

func sumOf(m map[string]int) (n int) {
	for _, v := range m {
		n += v
	}
	return n
}

func has(given map[objectName]bool, c claimant) (n int) {
	for _, name := range c.names {
		if given[objectName{c.ref.Namespace, name}] {
			n++
		}
	}
	return n
}
