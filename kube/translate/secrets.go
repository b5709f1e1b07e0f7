package translate

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	networkingv1 "k8s.io/api/networking/v1"

	"tapestry.dev/tapestry/kube"
)

// Every agent watches each Secret that an Ingress names, by itself, since a right to read one Secret is easier to give
// than a right to all. Users decide how many there are, so their number is limited.
const (
	// mostSecretsOfIngress is how many Secrets one Ingress may name.
	mostSecretsOfIngress = 200
	// mostSecrets is how many Secrets all Ingresses together may name. Namespaces share them out.
	mostSecrets = 2000
)

// IngressSecrets returns the Secrets that hold the certificates of the Ingresses Tapestry serves, within the limits.
func IngressSecrets(objs *kube.Objects) []kube.Ref {
	var all []claimant
	for _, obj := range Ingresses(objs) {
		names, _ := secretsOf(obj)
		all = append(all, claimant{kube.RefOf(obj), obj.CreationTimestamp.Time, names})
	}
	given := allot(all, mostSecrets)
	list := make([]kube.Ref, 0, len(given))
	for name := range given {
		list = append(list, name.secret())
	}
	slices.SortFunc(list, kube.Ref.Compare)
	return list
}

// secret returns the Ref of the Secret of that name.
func (n objectName) secret() kube.Ref {
	return kube.Ref{Kind: "Secret", Namespace: n.namespace, Name: n.name}
}

// secretsOf returns the names of the Secrets that one Ingress may use: the first of those that it names, each once.
// left counts the others.
func secretsOf(obj *networkingv1.Ingress) (names []string, left int) {
	seen := map[string]bool{}
	for i := range obj.Spec.TLS {
		name := obj.Spec.TLS[i].SecretName
		if name == "" || seen[name] {
			continue
		}
		seen[name] = true
		if len(names) < mostSecretsOfIngress {
			names = append(names, name)
		} else {
			left++
		}
	}
	return names, left
}

func (r *rules) parseSecrets(obj *networkingv1.Ingress, say *kube.Report) {
	var left int
	if r.secrets, left = secretsOf(obj); left > 0 {
		say.Errorf(r.ref, "spec.tls", "it names %d Secrets, and one Ingress may name %d: those from %q on are not read, so their hosts have no certificate by it; "+
			"divide it into several Ingresses, or let certificates have several hosts", len(r.secrets)+left, mostSecretsOfIngress, firstBeyond(obj, r.secrets))
	}
}

// firstBeyond returns the first Secret that an Ingress names and that is not among names.
func firstBeyond(obj *networkingv1.Ingress, names []string) string {
	among := map[string]bool{"": true}
	for _, name := range names {
		among[name] = true
	}
	i := slices.IndexFunc(obj.Spec.TLS, func(t networkingv1.IngressTLS) bool { return !among[t.SecretName] })
	return obj.Spec.TLS[i].SecretName
}

// claimant is an Ingress and the Secrets that it may use by itself.
type claimant struct {
	ref     kube.Ref
	created time.Time
	names   []string
}

// allot decides which Secrets are read when Ingresses name more than most. Namespaces get numbers that are as equal as
// possible: one that names few gets all of them, whatever the others do (max-min fairness). Of one namespace the
// Secrets of the oldest Ingress come first, so that a new Ingress takes nothing from others.
func allot(all []claimant, most int) map[objectName]bool {
	all = slices.Clone(all)
	slices.SortStableFunc(all, func(a, b claimant) int { return cmp.Or(a.created.Compare(b.created), a.ref.Compare(b.ref)) })
	wanted := map[string][]objectName{} // by namespace, each name once
	seen := map[objectName]bool{}
	for _, c := range all {
		for _, name := range c.names {
			if n := (objectName{c.ref.Namespace, name}); !seen[n] {
				seen[n] = true
				wanted[n.namespace] = append(wanted[n.namespace], n)
			}
		}
	}
	byNeed := slices.SortedFunc(maps.Keys(wanted), func(a, b string) int {
		return cmp.Or(cmp.Compare(len(wanted[a]), len(wanted[b])), strings.Compare(a, b))
	})
	given := make(map[objectName]bool, min(most, len(seen)))
	for i, namespace := range byNeed {
		share := (most - len(given)) / (len(byNeed) - i) // those that want more come later, and share what is left
		for _, n := range wanted[namespace][:min(share, len(wanted[namespace]))] {
			given[n] = true
		}
	}
	return given
}

// withSecrets returns the Ingresses with those of their TLS entries whose Secrets are read, the older ones first. It
// reports the others.
func withSecrets(all []*rules, say *kube.Report) []*rules {
	claims := make([]claimant, 0, len(all))
	for _, r := range all {
		claims = append(claims, claimant{r.ref, r.created, r.secrets})
	}
	given := allot(claims, mostSecrets)
	out := byAge(all)
	for i, r := range out {
		mine := make(map[string]bool, len(r.secrets))
		beyond := map[string]bool{}
		for _, name := range r.secrets {
			if mine[name] = given[objectName{r.ref.Namespace, name}]; !mine[name] {
				beyond[name] = true
			}
		}
		if n := len(beyond); n > 0 {
			say.Errorf(r.ref, "spec.tls", "%d of its Secrets are not read, so their hosts have no certificate by it: agents read %d Secrets for Ingresses, "+
				"the Ingresses of namespace %s name more than its share of them, and the older ones are served first; let certificates have several hosts, or name fewer",
				n, mostSecrets, r.ref.Namespace)
		}
		if slices.ContainsFunc(r.tls, func(t tlsEntry) bool { return !mine[t.secret.name] }) {
			kept := *r
			kept.tls = slices.DeleteFunc(slices.Clone(r.tls), func(t tlsEntry) bool { return !mine[t.secret.name] })
			out[i] = &kept
		}
	}
	return out
}
