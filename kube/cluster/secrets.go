package cluster

import (
	"context"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"

	"tapestry.dev/tapestry/kube"
)

// secrets watches the Secrets that something refers to, each by itself. So the agent needs no right to read other
// Secrets, and holds none. Only the goroutine of Run uses it.
type secrets struct {
	cluster *Cluster
	running *sync.WaitGroup
	byRef   map[kube.Ref]*secret
	// list and withheld are the last results of put.
	list     []*corev1.Secret
	withheld []kube.Ref
}

type secret struct {
	source *source
	store  *store[*corev1.Secret]
	stop   context.CancelFunc
}

// put sets, in objs, the referenced Secrets that exist, sorted, and the names of those that the agent may not read.
// missing names those of which nothing is known yet. When late is set, because a state has been delivered before,
// missing stays empty: an Ingress with a new Secret gets its certificate a moment later.
func (s *secrets) put(ctx context.Context, objs *kube.Objects, refs []kube.Ref, late bool) (missing []string) {
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
	var withheld []kube.Ref
	for _, ref := range refs {
		found, synced := s.byRef[ref].store.snapshot()
		if len(found) == 0 && s.byRef[ref].source.refused() != nil {
			withheld = append(withheld, ref)
		}
		list = append(list, found...)
		if !synced && !late {
			missing = append(missing, ref.String())
		}
	}
	if !slices.Equal(list, s.list) {
		s.list = list
	}
	if !slices.Equal(withheld, s.withheld) {
		s.withheld = withheld
	}
	objs.Secrets, objs.Withheld = s.list, s.withheld
	return missing
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
