package manifests

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"tapestry.dev/tapestry/kube"
)

// Directory is the source of a standalone cluster: its agents share a directory of manifests, and tell one another of
// themselves there. Its methods are safe for concurrent use.
type Directory struct {
	path string
	log  *slog.Logger

	mu sync.Mutex
	// mu guards the rest.
	read bool
	last kube.Objects
}

// NewDirectory gives the directory at path. log is told of manifests that cannot be used.
func NewDirectory(path string, log *slog.Logger) *Directory { return &Directory{path: path, log: log} }

// Run calls deliver with every state of the manifests that is without mistakes, until ctx is done.
func (d *Directory) Run(ctx context.Context, deliver func(kube.Objects, []kube.Problem)) error {
	return Watch(ctx, d.path, Options{
		// The writer replaces whole files, so there is little to wait for, and a backend that is gone is known sooner.
		Debounce: time.Millisecond,
		OnError: func(err error) {
			d.log.Error("the manifests cannot be used; going on with the last good ones", "err", err)
		},
	}, func(objs kube.Objects) {
		d.mu.Lock()
		d.read, d.last = true, objs
		d.mu.Unlock()
		deliver(objs, nil)
	})
}

// Publish tells the other agents what they need to know of a node, by a file in the directory.
func (d *Directory) Publish(s kube.NodeStatus) {
	if _, err := Publish(d.path, s); err != nil {
		d.log.Error("other nodes will not learn this node's key", "err", err)
	}
}

// Report does nothing: whoever writes manifests reads the problems in the nodes' status.
func (d *Directory) Report(*kube.Objects, []kube.Problem, []kube.Problem) {}

// PodIPs gives the addresses that a pod asks for, as kube.PodIPsAnnotation has them; "" for none.
func (d *Directory) PodIPs(_ context.Context, namespace, name string) (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range d.last.Pods {
		if p.Namespace == namespace && p.Name == name {
			return p.Annotations[kube.PodIPsAnnotation], nil
		}
	}
	return "", nil
}

// State says whether the manifests have been read once.
func (d *Directory) State() kube.SourceState {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.read {
		return kube.SourceState{Waiting: []string{"manifests without mistakes in " + d.path}}
	}
	return kube.SourceState{Synced: true}
}
