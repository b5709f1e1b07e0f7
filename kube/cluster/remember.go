package cluster

import (
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/runtime"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/cluster/saved"
)

// savedFile is the name of the file with the last snapshot, in the state directory.
const savedFile = "objects"

// openSaved fills the stores with the objects that an agent of this node saved, if it can, and makes the Writer that
// saves those of this one.
func (c *Cluster) openSaved(cluster string) {
	path, owner := filepath.Join(c.Options.State, savedFile), saved.Owner{Node: c.Node, Cluster: cluster}
	var kinds []*kube.Kind
	strip := map[*kube.Kind]func(runtime.Object){}
	for _, s := range c.sources {
		kinds = append(kinds, s.kind)
		if !s.names && s.arrives == nil { // those have nothing else
			strip[s.kind] = s.strip
		}
	}
	objs, at, err := saved.Load(path, owner, kinds)
	switch {
	case err == nil:
		for obj := range objs.All() {
			if reduce := strip[kube.KindOf(obj)]; reduce != nil {
				reduce(obj) // so that what many objects say is in memory once, as of those that arrive
			}
		}
		for _, s := range c.sources {
			s.store.fill(&objs)
		}
		c.savedAt = at
	case !errors.Is(err, fs.ErrNotExist):
		c.log.Warn("the cluster's objects that were saved on this node are left out: nothing is served before an API server answers", "file", path, "err", err)
	}
	c.saver = saved.NewWriter(saved.Options{
		Path: path, Owner: owner, Kinds: kinds, Current: func() bool { return c.State().Age == 0 }, Changed: c.touch,
	}, &objs)
}

// saved returns what an agent of this node saved, or false when there is nothing.
func (c *Cluster) saved() (kube.Objects, []kube.Problem, bool) {
	if c.savedAt.IsZero() {
		return kube.Objects{}, nil, false
	}
	var objs kube.Objects
	for _, s := range c.stores {
		s.put(&objs)
	}
	if c.SecretsOf != nil {
		objs.Awaited = slices.Compact(slices.SortedFunc(slices.Values(c.SecretsOf(&objs)), kube.Ref.Compare))
	}
	return objs, c.complete(&objs, true), true
}

// age returns how long ago something was, and never nothing: a clock may have been set back.
func age(at time.Time) time.Duration { return max(time.Since(at), time.Nanosecond) }
