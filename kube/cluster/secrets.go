package cluster

import (
	"context"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"

	"tapestry.dev/tapestry/kube"
)

// secrets watches the Secrets that somebody refers to, each by itself: so the agent needs no right to read others,
// and holds none. Its methods are called by the goroutine of Run alone, but for sources.
type secrets struct {
	cluster *Cluster
	running *sync.WaitGroup

	mu sync.Mutex
	// mu guards byRef, which only Run's goroutine changes.
	byRef map[kube.Ref]*secret
	list  []*corev1.Secret // given out
}

type secret struct {
	source *source
	store  *store[*corev1.Secret]
	stop   context.CancelFunc
}

// of gives those of the Secrets that there are, sorted, and the names of those nobody knows yet. Once a state has
// been given out a new Secret holds nothing up: the Ingress that has come with it gets its certificate a moment
// later.
func (s *secrets) of(ctx context.Context, refs []kube.Ref, late bool) (list []*corev1.Secret, missing []string) {
	slices.SortFunc(refs, kube.Ref.Compare)
	refs = slices.Compact(refs)
	s.mu.Lock()
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
	s.mu.Unlock()
	for _, ref := range refs {
		found, synced := s.byRef[ref].store.snapshot()
		list = append(list, found...)
		if !synced && !late {
			missing = append(missing, ref.String())
		}
	}
	if !slices.Equal(list, s.list) {
		s.list = list
	}
	return s.list, missing
}

func (s *secrets) watch(ctx context.Context, ref kube.Ref) *secret {
	ctx, cancel := context.WithCancel(ctx)
	r := secretRow().where("metadata.name", ref.Name)
	out := &secret{store: newStore[*corev1.Secret](nil, s.cluster.touch), stop: cancel}
	out.source = s.cluster.newSource(r, out.store)
	out.source.name = ref.String()
	out.source.path += "/namespaces/" + ref.Namespace
	s.running.Go(func() { out.source.run(ctx) })
	return out
}

// sources gives the sources of the Secrets, in no order.
func (s *secrets) sources() []*source {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []*source
	for _, known := range s.byRef {
		list = append(list, known.source)
	}
	return list
}
