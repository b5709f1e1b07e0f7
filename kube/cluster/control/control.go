// Package control reads what is decided about once for a whole cluster, and writes the decisions: the status of
// Services, Ingresses and Tapestry's own kinds.
//
// It keeps nothing but whose turn it is to be written. A decision is a function of the objects as they are, so a
// process that takes over from another goes on where that one was. A status is written only over the version of the
// object from which it follows. So of two processes that both believe that they lead, one is refused, reads what the
// other wrote, and decides anew. They can give one address to two Services for a moment; the older keeps it.
package control

import (
	"cmp"
	"context"
	"encoding/json"
	"iter"
	"log/slog"
	"reflect"
	"slices"
	"time"

	"golang.org/x/time/rate"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/cluster/servers"
	"tapestry.dev/tapestry/kube/cluster/tell"
)

// Options configure a Control.
type Options struct {
	// Name is this process's name, in Events.
	Name string
	Rest rest.Interface
	Link *servers.Link
	// Decide returns the objects with the status that they are to have, as changed copies, and what is wrong with them.
	Decide func(kube.Objects) (kube.Objects, []kube.Problem)
	Log    *slog.Logger
}

const (
	// settleTime is how long changes gather before a decision.
	settleTime = 100 * time.Millisecond
	// restFactor is how many times as long as a decision took it is before the next one, and mostRest how long that is
	// at most. All is decided anew each time, so whoever keeps changing an object could have the controller take all of
	// a processor otherwise: this way it is a quarter at most, while a decision takes a second or less.
	restFactor = 3
	mostRest   = 3 * time.Second
	// Objects are written at most every writeEvery, after writeBurst at once.
	writeEvery = 20 * time.Millisecond
	writeBurst = 50
	// writeTime is how long decisions are written before they are made anew.
	writeTime = time.Second
	// again is the pause after a write that failed.
	again = time.Second
)

// Run reads, decides and writes until ctx is done.
func Run(ctx context.Context, o Options) {
	r := newReader(o)
	reporter := tell.NewReporter("tapestry.dev/controller", o.Name, o.Rest, o.Link, o.Log)
	done := make(chan struct{}, 2)
	go func() { r.run(ctx); done <- struct{}{} }()
	go func() { reporter.Run(ctx); done <- struct{}{} }()
	w := writer{Options: o, limit: rate.NewLimiter(rate.Every(writeEvery), writeBurst)}
	said := ""
	took := time.Duration(0)
	for r.wait(ctx, max(settleTime, min(restFactor*took, mostRest))) {
		began := time.Now()
		objs, ready := r.objects()
		if !ready {
			continue
		}
		want, problems := o.Decide(objs)
		reporter.Want(&want, nil, problems)
		changes := w.order.of(pending(&objs, &want))
		took = time.Since(began)
		left, failed, err := w.write(ctx, changes)
		switch {
		case ctx.Err() != nil:
		case err != nil:
			if said != err.Error() {
				o.Log.Error("decisions are not written yet", "number", failed, "first", err)
				said = err.Error()
			}
			time.AfterFunc(again, r.touch)
		case left:
			r.touch()
		default:
			said = ""
		}
	}
	<-done
	<-done
}

// writer writes statuses.
type writer struct {
	Options
	limit *rate.Limiter
	order order
}

// change is an object whose status is to be written, and the object as it is.
type change struct{ old, now kube.Object }

// pending returns the changes in the order of the snapshots.
func pending(have, want *kube.Objects) []change {
	next, stop := iter.Pull(have.All())
	defer stop()
	var list []change
	for obj := range want.All() { // in the order of have, of which some are other copies
		if old, _ := next(); old != obj {
			list = append(list, change{old, obj})
		}
	}
	return list
}

// write writes changes for writeTime at most, since they age: left reports that there are more. One that cannot be
// written does not hold up the others; err is the first of those that failed.
func (w *writer) write(ctx context.Context, list []change) (left bool, failed int, err error) {
	end := time.Now().Add(writeTime)
	for _, c := range list {
		if time.Now().After(end) {
			return true, failed, err
		}
		if w.limit.Wait(ctx) != nil {
			return true, failed, err
		}
		w.order.tried(kube.RefOf(c.now))
		if e := w.status(ctx, c.old, c.now); e != nil {
			failed++
			err = cmp.Or(err, e)
		}
	}
	return false, failed, err
}

// status writes the status of one object, if nobody has written the object since.
func (w *writer) status(ctx context.Context, old, obj kube.Object) error {
	body, err := statusPatch(old, obj)
	if err != nil {
		return err
	}
	k := kube.KindOf(obj)
	path := []string{k.Group.Path()}
	if !k.ClusterScoped {
		path = append(path, "namespaces", obj.GetNamespace())
	}
	path = append(path, k.Resource(), obj.GetName(), "status")
	err = w.Link.Do(ctx, func() error {
		return w.Rest.Patch(types.MergePatchType).AbsPath(path...).Body(body).Do(ctx).Error()
	})
	switch {
	case apierrors.IsConflict(err), apierrors.IsNotFound(err): // the watch brings what is new
		return nil
	case err != nil:
		return &kube.Problem{Severity: kube.Error, Object: kube.RefOf(obj), Field: "status", Message: "it cannot be written: " + err.Error()}
	}
	return nil
}

// statusPatch returns a merge patch (RFC 7386) that makes the status and the finalizers of old those of obj, if old is
// still as it was.
func statusPatch(old, obj kube.Object) ([]byte, error) {
	var status [2]any
	for i, o := range []kube.Object{old, obj} {
		whole, err := json.Marshal(o)
		if err != nil {
			return nil, err
		}
		var parts struct {
			Status map[string]any `json:"status"`
		}
		if err := json.Unmarshal(whole, &parts); err != nil {
			return nil, err
		}
		status[i] = parts.Status
	}
	metadata := map[string]any{"resourceVersion": old.GetResourceVersion(), "uid": string(old.GetUID())}
	if list := obj.GetFinalizers(); !slices.Equal(list, old.GetFinalizers()) {
		metadata["finalizers"] = list // which may be written along with the status
	}
	return json.Marshal(map[string]any{"metadata": metadata, "status": difference(status[0], status[1])})
}

// difference returns what a merge patch has to say to make of one JSON value another.
func difference(from, to any) any {
	a, okA := from.(map[string]any)
	b, okB := to.(map[string]any)
	if !okA || !okB {
		return to
	}
	out := map[string]any{}
	for key := range a {
		if _, stays := b[key]; !stays {
			out[key] = nil
		}
	}
	for key, value := range b {
		if before, there := a[key]; !there || !reflect.DeepEqual(before, value) {
			out[key] = difference(before, value)
		}
	}
	return out
}
