package cluster

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/cluster/clustertest"
	"tapestry.dev/tapestry/kube/translate"
)

func ingress(name, secret string) *networkingv1.Ingress {
	return &networkingv1.Ingress{
		ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: name},
		Spec:       networkingv1.IngressSpec{TLS: []networkingv1.IngressTLS{{SecretName: secret}}},
	}
}

func secretOf(name, key string) *corev1.Secret {
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: name}, Type: corev1.SecretTypeTLS,
		Data: map[string][]byte{"tls.crt": []byte("crt"), "tls.key": []byte(key), "other": []byte("x")},
	}
}

// Only the referenced Secrets are read, and the first snapshot contains them.
func TestSecrets(t *testing.T) {
	both(t, func(t *testing.T, s *clustertest.Server) {
		s.Put(ingress("i", "used"), secretOf("used", "one"), secretOf("unused", "x"))
		v := see(t, s)
		objs := v.untilNames("Ingress x/i, Secret x/used")
		if v.count() != 1 {
			t.Errorf("the Secret came with snapshot %d", v.count())
		}
		if data := objs.Secrets[0].Data; len(data) != 2 || string(data["tls.key"]) != "one" {
			t.Errorf("the Secret has %v", data)
		}
		s.Put(secretOf("used", "two"))
		v.until("the new key", func(objs *kube.Objects, _ []kube.Problem) bool {
			return string(objs.Secrets[0].Data["tls.key"]) == "two"
		})
		s.Put(ingress("j", "late"))
		v.untilNames("Ingress x/i, Ingress x/j, Secret x/used")
		s.Put(secretOf("late", "three"))
		v.untilNames("Ingress x/i, Ingress x/j, Secret x/late, Secret x/used")
		s.Delete(ingress("i", ""))
		v.untilNames("Ingress x/j, Secret x/late")
		v.stop()
		if n := len(v.secrets.byRef); n != 1 {
			t.Errorf("%d Secrets are watched", n)
		}
	})
}

// A Secret that may not be read delays nothing. The Ingress that refers to it gets a Problem, and its certificate
// once the right is granted.
func TestRefusedSecret(t *testing.T) {
	t.Parallel()
	s := clustertest.New(t)
	s.Put(ingress("i", "used"), secretOf("used", "one"), service("a"))
	s.Answer("secrets", http.StatusForbidden)
	v := see(t, s, func(o *Options) { o.refusedPause = time.Millisecond })
	objs := v.until("a refusal", func(objs *kube.Objects, problems []kube.Problem) bool {
		return names(objs) == "x/a, Ingress x/i" && slices.Equal(objs.Withheld, []kube.Ref{{Kind: "Secret", Namespace: "x", Name: "used"}}) && len(problems) == 0
	})
	told := func(objs *kube.Objects, what string) bool {
		return slices.ContainsFunc(translate.Translate(*objs, translate.Options{Node: "n1"}).Problems, func(p kube.Problem) bool {
			return p.Object == kube.Ref{Kind: "Ingress", Namespace: "x", Name: "i"} && p.Field == "spec.tls[0].secretName" && strings.Contains(p.Message, what)
		})
	}
	if !told(&objs, "may not read Secret x/used") || told(&objs, "there is no Secret") {
		t.Errorf("the Ingress has the problems %v", translate.Translate(objs, translate.Options{Node: "n1"}).Problems)
	}
	s.Answer("secrets", 0)
	objs = v.until("the right is given", func(objs *kube.Objects, _ []kube.Problem) bool {
		return names(objs) == "x/a, Ingress x/i, Secret x/used" && len(objs.Withheld) == 0
	})
	if told(&objs, "may not read") {
		t.Error("the Ingress says still that its Secret may not be read")
	}
	s.Answer("secrets", http.StatusForbidden) // what is known stays
	s.CutWatches()
	s.Put(service("b"))
	v.untilNames("x/a, x/b, Ingress x/i, Secret x/used")
}

// A Secret that may not be read is requested again only after minutes, and by each agent at a different time.
func TestRefusedSecretRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &Cluster{Options: Options{Node: "n1"}, wake: make(chan struct{}, 1)}
		s := c.newSource(secretRow(), newStore[*corev1.Secret](nil, func() {}))
		began := time.Now()
		s.pause(t.Context())
		if time.Since(began) != 0 {
			t.Error("nothing was refused, and it waits")
		}
		s.note(apierrors.NewForbidden(schema.GroupResource{Resource: "secrets"}, "x", nil), false)
		s.pause(t.Context())
		if d := time.Since(began); d < refusedPause || d > 2*refusedPause {
			t.Errorf("it waits for %v", d)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		began = time.Now()
		s.pause(ctx)
		if time.Since(began) != 0 {
			t.Error("it waits though nobody wants the Secret any more")
		}
	})
}

func TestWithoutIngress(t *testing.T) {
	t.Parallel()
	s := clustertest.New(t)
	s.Put(ingress("i", "used"), service("a"))
	v := see(t, s, func(o *Options) { o.SecretsOf = nil })
	v.untilNames("x/a")
	if requests := s.Requests(); slices.ContainsFunc(requests, func(r string) bool { return strings.Contains(r, "ingress") }) {
		t.Errorf("requests %q", requests)
	}
}

// One namespace names very many Secrets, and those of another are read before most of these. The requests keep to their
// rate.
func TestManySecrets(t *testing.T) {
	t.Parallel()
	s := clustertest.New(t)
	s.Put(secretOf("used", "one"), service("a"))
	refs := []kube.Ref{{Kind: "Secret", Namespace: "x", Name: "used"}}
	for i := range 500 {
		refs = append(refs, kube.Ref{Kind: "Secret", Namespace: "greedy", Name: fmt.Sprint("s", i)})
	}
	began := time.Now()
	v := see(t, s, func(o *Options) { o.SecretsOf = func(*kube.Objects) []kube.Ref { return refs } })
	objs := v.until("the Secret of the modest namespace", func(objs *kube.Objects, _ []kube.Problem) bool { return len(objs.Secrets) == 1 })
	if len(objs.Awaited) == 0 {
		t.Error("the Secret came only after those of the greedy namespace")
	}
	asked := 0
	for _, r := range s.Requests() {
		if strings.Contains(r, "secrets") {
			asked++
		}
	}
	took := time.Since(began)
	if most := secretsBurst + int(took.Seconds()*secretsPerSecond) + 1; asked == 0 || asked > most {
		t.Errorf("%d requests for Secrets within %v, want at most %d", asked, took, most)
	}
}

// The start waits for the first answers about Secrets, but not without bound: here none comes. Nothing wrong is said of
// a Secret meanwhile.
func TestStartWithoutSecrets(t *testing.T) {
	t.Parallel()
	s := clustertest.New(t)
	s.Put(ingress("i", "used"), secretOf("used", "one"), service("a"))
	release := s.Hold("secrets")
	v := see(t, s)
	objs := v.untilNames("x/a, Ingress x/i")
	if want := []kube.Ref{{Kind: "Secret", Namespace: "x", Name: "used"}}; !slices.Equal(objs.Awaited, want) || len(objs.Withheld) > 0 {
		t.Errorf("awaited %v, withheld %v", objs.Awaited, objs.Withheld)
	}
	release()
	objs = v.untilNames("x/a, Ingress x/i, Secret x/used")
	if len(objs.Awaited) > 0 {
		t.Errorf("%v is awaited though it is there", objs.Awaited)
	}
}
