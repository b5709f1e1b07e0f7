package manifests

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"tapestry.dev/tapestry/kube"
)

// Directory is the source of a standalone cluster, whose agents share a directory of manifests and publish their own
// state there. Its methods are safe for concurrent use.
type Directory struct {
	path string
	log  *slog.Logger

	mu sync.Mutex
	// mu guards the rest.
	read bool
	last kube.Objects
}

// NewDirectory returns the source for the directory at path. Manifests that cannot be used are reported to log.
func NewDirectory(path string, log *slog.Logger) *Directory { return &Directory{path: path, log: log} }

// Run calls deliver with the objects of the directory, as Watch does, until ctx is done.
func (d *Directory) Run(ctx context.Context, deliver func(kube.Objects, []kube.Problem)) error {
	return Watch(ctx, d.path, Options{
		// Write replaces whole files, so there is little to wait for, and the loss of a backend is noticed sooner.
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

// Publish writes the state of a node to a file in the directory, for the other agents.
func (d *Directory) Publish(s kube.NodeStatus) {
	if _, err := Publish(d.path, s); err != nil {
		d.log.Error("other nodes will not learn this node's key", "err", err)
	}
}

// Report does nothing: the authors of manifests read the problems in the nodes' status.
func (d *Directory) Report(*kube.Objects, []kube.Problem, []kube.Problem) {}

// Urgent returns nil: no kubelet ends what a directory says.
func (d *Directory) Urgent() <-chan struct{} { return nil }

// PodIPs returns the addresses that a pod asks for with kube.PodIPsAnnotation, or "" when it asks for none.
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

// State reports whether the manifests have been read once.
func (d *Directory) State() kube.SourceState {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.read {
		return kube.SourceState{Waiting: []string{"manifests without mistakes in " + d.path}}
	}
	return kube.SourceState{Synced: true}
}
