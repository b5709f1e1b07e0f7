package cluster

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/cluster/turns"
)

// Requests for Secrets, lists and watches together, are limited: to secretsPerSecond in the long run, to secretsBurst
// after a rest, and to secretsAtOnce that have no answer yet. Every agent sends them, and users decide how many Secrets
// there are. Namespaces take turns.
const (
	secretsPerSecond = 50
	secretsBurst     = 100
	secretsAtOnce    = 10
)

// secretsWait limits how long the first snapshot waits for Secrets, counted from when everything else is there. An
// Ingress whose Secret comes later gets its certificate then.
const secretsWait = 3 * time.Second

// secrets watches the Secrets that something refers to, each by itself. So the agent needs no right to read other
// Secrets, and holds none. Only the goroutine of Run uses it.
type secrets struct {
	cluster *Cluster
	running *sync.WaitGroup
	byRef   map[kube.Ref]*secret
	turns   *turns.Turns
	wait    time.Duration // secretsWait
	until   time.Time     // how long the first snapshot may wait; zero until that is known
	late    bool          // no snapshot waits any longer
	// list, withheld and awaited are the last results of put.
	list              []*corev1.Secret
	withheld, awaited []kube.Ref
}

func newSecrets(c *Cluster) secrets {
	return secrets{cluster: c, byRef: map[kube.Ref]*secret{}, turns: turns.New(secretsPerSecond, secretsBurst, secretsAtOnce), wait: secretsWait}
}

type secret struct {
	source *source
	store  *store[*corev1.Secret]
	stop   context.CancelFunc
}

// put sets, in objs, the referenced Secrets that exist, sorted, the names of those that the agent may not read, and of
// those of which nothing is known yet. missing says how many are worth waiting for before the first snapshot.
func (s *secrets) put(ctx context.Context, objs *kube.Objects, refs []kube.Ref) (missing []string) {
	refs = slices.Clone(refs)
	slices.SortFunc(refs, kube.Ref.Compare)
	refs = slices.Compact(refs)
	for ref, known := range s.byRef {
		if _, wanted := slices.BinarySearchFunc(refs, ref, kube.Ref.Compare); !wanted {
			known.stop()
			delete(s.byRef, ref)
		}
	}
	for _, ref := range refs {
		if s.byRef[ref] == nil {
			s.byRef[ref] = s.watch(ctx, ref)
		}
	}
	var list []*corev1.Secret
	var withheld, awaited []kube.Ref
	for _, ref := range refs {
		found, synced := s.byRef[ref].store.snapshot()
		list = append(list, found.Slice()...)
		switch {
		case found.Len() == 0 && s.byRef[ref].source.refused() != nil:
			withheld = append(withheld, ref)
		case !synced:
			awaited = append(awaited, ref)
		}
	}
	if !slices.Equal(list, s.list) {
		s.list = list
	}
	if !slices.Equal(withheld, s.withheld) {
		s.withheld = withheld
	}
	if !slices.Equal(awaited, s.awaited) {
		s.awaited = awaited
	}
	objs.Secrets, objs.Withheld, objs.Awaited = s.list, s.withheld, s.awaited
	if s.waits(len(awaited) > 0) {
		return []string{fmt.Sprintf("%d of %d Secrets of Ingresses", len(awaited), len(refs))}
	}
	return nil
}

// waits reports whether the snapshot waits for Secrets. Only the first one does, and no longer than s.wait.
func (s *secrets) waits(incomplete bool) bool {
	if s.late = s.late || !incomplete; s.late {
		return false
	}
	if s.until.IsZero() {
		s.until = time.Now().Add(s.wait)
		time.AfterFunc(s.wait, s.cluster.touch)
	}
	s.late = !time.Now().Before(s.until)
	return !s.late
}

func (s *secrets) watch(ctx context.Context, ref kube.Ref) *secret {
	ctx, cancel := context.WithCancel(ctx)
	r := secretRow().where("metadata.name", ref.Name)
	out := &secret{store: newStore[*corev1.Secret](nil, s.cluster.touch), stop: cancel}
	out.source = s.cluster.newSource(r, out.store)
	out.source.name = ref.String()
	out.source.paths = []string{r.kind.Group.Path() + "/namespaces/" + ref.Namespace}
	out.source.turns, out.source.owner = s.turns, ref.Namespace
	s.running.Go(func() { out.source.run(ctx) })
	return out
}
