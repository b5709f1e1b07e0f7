// Package lease lets one of several processes lead, by a Lease in the cluster.
//
// It does what client-go's package leaderelection does, which cannot be linked here: that package imports a whole
// clientset, whose kinds cost every process of this program eleven megabytes, agents and keepers among them.
package lease

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"tapestry.dev/tapestry/kube/cluster/servers"
)

// The times of Kubernetes' own controllers.
const (
	// duration is how long others wait, after the last renewal that they see, before they take the Lease.
	duration = 15 * time.Second
	// renewal is how long a leader goes on without a renewal that the API server has confirmed. It is less than
	// duration, so that a leader has ended before another one begins.
	renewal = 10 * time.Second
	// retry is the pause between two looks at the Lease.
	retry = 2 * time.Second
	// timeout limits one request.
	timeout = 5 * time.Second
)

// Elector holds a Lease for a process, or waits for it.
type Elector struct {
	Namespace, Name string
	// Identity is this process's name, which no other has.
	Identity string
	Rest     rest.Interface
	Log      *slog.Logger

	seen    observation
	retries time.Duration // 0 for retry
}

// observation is a Lease as it was last seen to change. Times in it are never compared with ours: clocks of machines
// differ.
type observation struct {
	lease *coordinationv1.Lease
	at    time.Time // by our own clock
}

// Run waits until it holds the Lease, and calls lead then. The context of lead ends when the Lease is lost, or when ctx
// is done. Run returns nil after ctx is done, and gives the Lease back before; it returns an error when the Lease was
// lost, and whoever cannot begin anew should end then.
func (e *Elector) Run(ctx context.Context, lead func(context.Context)) error {
	pause := e.retries
	if pause == 0 {
		pause = retry
	}
	waiting := ""
	for {
		held, err := e.try(ctx)
		if held {
			break
		}
		if err != nil && ctx.Err() == nil && err.Error() != waiting {
			e.Log.Warn("the Lease cannot be had for now", "lease", e.Namespace+"/"+e.Name, "err", err)
			waiting = err.Error()
		}
		if !servers.Sleep(ctx, pause) {
			return nil
		}
	}
	e.Log.Info("this process leads", "lease", e.Namespace+"/"+e.Name)
	leading, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { defer close(done); lead(leading) }()
	err := e.renew(ctx, pause)
	stop()
	<-done
	if err == nil {
		e.release()
	}
	return err
}

// renew renews the Lease until ctx is done. It returns an error when the Lease is lost.
func (e *Elector) renew(ctx context.Context, pause time.Duration) error {
	last := time.Now()
	for servers.Sleep(ctx, pause) {
		began := time.Now()
		limited, cancel := context.WithDeadline(ctx, last.Add(renewal))
		held, err := e.try(limited)
		cancel()
		switch {
		case ctx.Err() != nil:
			return nil
		case held:
			last = began
		case err == nil:
			return fmt.Errorf("the Lease %s/%s is another's", e.Namespace, e.Name)
		case time.Since(last) >= renewal:
			return fmt.Errorf("the Lease %s/%s could not be renewed for %s: %w", e.Namespace, e.Name, renewal, err)
		}
	}
	return nil
}

// action says what is done about a Lease.
type action uint8

const (
	wait   action = iota // it is another's
	create               // there is none
	take                 // nobody renews it
	extend               // it is ours
)

// decide says what a process does about the Lease that it sees; nil means that there is none.
func decide(seen observation, identity string, now time.Time) action {
	l := seen.lease
	switch {
	case l == nil:
		return create
	case l.Spec.HolderIdentity == nil || *l.Spec.HolderIdentity == "":
		return take
	case *l.Spec.HolderIdentity == identity:
		return extend
	}
	lasts := duration
	if s := l.Spec.LeaseDurationSeconds; s != nil {
		lasts = time.Duration(*s) * time.Second
	}
	if now.Sub(seen.at) > lasts {
		return take
	}
	return wait
}

// try takes or renews the Lease. It reports whether the API server has confirmed that it is ours.
func (e *Elector) try(ctx context.Context) (held bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	got := &coordinationv1.Lease{}
	err = e.Rest.Get().AbsPath(e.path(), e.Name).Do(ctx).Into(got)
	switch {
	case apierrors.IsNotFound(err):
		got = nil
	case err != nil:
		return false, err
	}
	if got == nil || e.seen.lease == nil || got.ResourceVersion != e.seen.lease.ResourceVersion {
		e.seen = observation{got, time.Now()}
	}
	next := decide(e.seen, e.Identity, time.Now())
	if next == wait {
		return false, nil
	}
	want := e.next(next)
	if next == create {
		err = e.Rest.Post().AbsPath(e.path()).Body(want).Do(ctx).Into(want)
	} else {
		err = e.Rest.Put().AbsPath(e.path(), e.Name).Body(want).Do(ctx).Into(want)
	}
	if apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) { // another was quicker
		return false, nil
	}
	if err != nil {
		return false, err
	}
	e.seen = observation{want, time.Now()}
	return true, nil
}

// next returns the Lease that is to be written. Its version is that of the one that was seen, so that of two processes
// that take it at once only one succeeds.
func (e *Elector) next(a action) *coordinationv1.Lease {
	now, seconds := metav1.NowMicro(), int32(duration/time.Second)
	l := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: e.Namespace, Name: e.Name}}
	if a != create {
		l = e.seen.lease.DeepCopy()
	}
	l.APIVersion, l.Kind = "coordination.k8s.io/v1", "Lease"
	if a != extend {
		changes := int32(0)
		if l.Spec.LeaseTransitions != nil {
			changes = *l.Spec.LeaseTransitions + 1
		}
		l.Spec.HolderIdentity, l.Spec.AcquireTime, l.Spec.LeaseTransitions = &e.Identity, &now, &changes
	}
	l.Spec.RenewTime, l.Spec.LeaseDurationSeconds = &now, &seconds
	return l
}

// release gives the Lease back, so that the next process need not wait.
func (e *Elector) release() {
	if l := e.seen.lease; l == nil || l.Spec.HolderIdentity == nil || *l.Spec.HolderIdentity != e.Identity {
		return // it is another's by now
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	l := e.next(extend)
	nobody := ""
	l.Spec.HolderIdentity = &nobody
	if err := e.Rest.Put().AbsPath(e.path(), e.Name).Body(l).Do(ctx).Error(); err != nil {
		e.Log.Warn("the Lease is not given back: the next process waits for it to run out", "err", err)
	}
}

func (e *Elector) path() string {
	return "/apis/coordination.k8s.io/v1/namespaces/" + e.Namespace + "/leases"
}
