package plugin

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"

	"tapestry.dev/tapestry/kube/cni"
	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/visible"
)

// Name is the file name of the executable, and the type in a network configuration.
const Name = "tapestry-cni"

// These codes of STATUS are in the specification (1.1.0, section "Error") but not in the library.
const (
	errNotAvailable uint = 50 // pods cannot be added
	errLimited      uint = 51 // and existing pods may have lost connectivity
)

// How long the agent may take in all.
const (
	addTime   = 25 * time.Second
	otherTime = 10 * time.Second
	retry     = 20 * time.Millisecond
	// delPatience is long enough for an agent that is being restarted to receive the DEL itself.
	delPatience = time.Second
)

// Main executes the operation in the environment, as the specification defines it, and returns the exit status.
func Main() int {
	err := skel.PluginMainFuncsWithError(skel.CNIFuncs{
		Add: add, Del: del, Check: check, GC: collect, Status: status,
	}, version.All, Name+": makes the interfaces of pods for Tapestry, a userspace network for Kubernetes")
	if err == nil {
		return 0
	}
	err.Msg, err.Details = visible.Text(err.Msg), visible.Text(err.Details) // they quote the runtime's input
	if perr := err.Print(); perr != nil {
		fmt.Fprintln(os.Stderr, perr)
	}
	return 1
}

// call is one run of the executable for one attachment.
type call struct {
	conf  *config
	args  *skel.CmdArgs
	pod   cni.Pod
	agent *cni.Client
}

func newCall(args *skel.CmdArgs) (*call, error) {
	conf, err := readConfig(args.StdinData)
	if err != nil {
		return nil, err
	}
	c := &call{conf: conf, args: args, agent: &cni.Client{Path: conf.Socket}}
	c.pod, err = conf.pod(args)
	return c, err
}

func add(args *skel.CmdArgs) error {
	c, err := newCall(args)
	if err != nil {
		return err
	}
	if err := c.pod.CheckNames(); err != nil {
		return types.NewError(types.ErrInvalidEnvironmentVariables, "what is to be attached cannot be called so: "+err.Error(), "")
	}
	ctx, cancel := context.WithTimeout(context.Background(), addTime)
	defer cancel()
	if err := c.add(ctx); err != nil {
		return explain("add pod "+c.pod.String(), err)
	}
	return c.print()
}

func (c *call) add(ctx context.Context) error {
	ns, err := c.namespace()
	if err != nil {
		return err
	}
	defer ns.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var p cni.Prepared
	err = patiently(ctx, c.conf.patience(), func() (err error) {
		p, err = c.agent.Prepare(ctx, c.pod)
		return err
	})
	if err != nil {
		return err
	}
	c.pod = p.Pod
	if p.Attached && c.inspect(ns) == nil {
		return nil
	}
	if err := c.attach(ctx, ns); err != nil {
		// The agent may have attached the pod although its answer is missing; the next attempt makes another TAP.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = c.agent.Del(ctx, c.pod)
		return err
	}
	return nil
}

// attach makes the interface and hands it to the agent.
func (c *call) attach(ctx context.Context, ns *tap.Namespace) error {
	conf, err := c.tap()
	if err != nil {
		return err
	}
	f, err := tap.Create(ns, conf)
	if errors.Is(err, tap.ErrExists) {
		if err = tap.Remove(ns, conf.Name); err == nil { // left by an ADD that did not finish
			f, err = tap.Create(ns, conf)
		}
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if limit := c.limit(); limit.Bits > 0 {
		if err := tap.Limit(ns, conf.Name, limit); err != nil {
			return err
		}
	}
	return patiently(ctx, c.conf.patience(), func() error { return c.agent.Add(ctx, c.pod, f) })
}

// patiently calls f again while the agent is away, until patience has passed.
func patiently(ctx context.Context, patience time.Duration, f func() error) error {
	end := time.Now().Add(patience)
	tick := time.NewTicker(retry)
	defer tick.Stop()
	for {
		err := f()
		if !errors.Is(err, cni.ErrUnavailable) || !time.Now().Before(end) {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return err
		}
	}
}

func del(args *skel.CmdArgs) error {
	c, err := newCall(args)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), otherTime)
	defer cancel()
	err = patiently(ctx, min(c.conf.patience(), delPatience), func() error { return c.agent.Del(ctx, c.pod) })
	if errors.Is(err, cni.ErrUnavailable) {
		fmt.Fprintln(os.Stderr, visible.Text(fmt.Sprintf("delete pod %s: %v; the next agent will find out that it is gone", &c.pod, err)))
		err = nil
	}
	return explain("delete pod "+c.pod.String(), errors.Join(err, c.removeTAP()))
}

// removeTAP deletes the interface in the pod's namespace, if the namespace still exists.
func (c *call) removeTAP() error {
	if c.args.Netns == "" {
		return nil
	}
	ns, err := c.namespace()
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, errNoNamespace) {
		return nil
	}
	if err != nil {
		return err
	}
	defer ns.Close()
	return tap.Remove(ns, c.args.IfName)
}

func check(args *skel.CmdArgs) error {
	c, err := newCall(args)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), otherTime)
	defer cancel()
	return explain("check pod "+c.pod.String(), c.check(ctx))
}

func (c *call) check(ctx context.Context) error {
	ns, err := c.namespace()
	if err != nil {
		return err
	}
	defer ns.Close()
	asked := c.pod
	if c.pod, err = c.agent.Check(ctx, c.pod); err != nil {
		return err
	}
	return errors.Join(c.checkCapabilities(&asked), c.inspect(ns), c.checkResult())
}

func status(args *skel.CmdArgs) error {
	conf, err := readConfig(args.StdinData)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), otherTime)
	defer cancel()
	st, err := (&cni.Client{Path: conf.Socket}).Status(ctx)
	if err != nil {
		return types.NewError(errLimited, err.Error(), adviceAway)
	}
	if !st.Ready {
		return types.NewError(errNotAvailable, "the agent is not ready for pods yet", st.Reason)
	}
	return nil
}

func collect(args *skel.CmdArgs) error {
	conf, err := readConfig(args.StdinData)
	if err != nil {
		return err
	}
	valid, err := conf.valid()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), otherTime)
	defer cancel()
	return explain("collect what is left of network "+conf.Name, (&cni.Client{Path: conf.Socket}).Collect(ctx, conf.Name, valid))
}

const adviceAway = "see that the agent of this node runs; the runtime will try again"

// explain turns err into an error with a code of the specification.
func explain(what string, err error) error {
	var known *types.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &known):
		return known
	case errors.Is(err, cni.ErrUnavailable), errors.Is(err, context.DeadlineExceeded):
		return types.NewError(types.ErrTryAgainLater, what+": "+err.Error(), adviceAway)
	case errors.Is(err, cni.ErrTryLater):
		return types.NewError(types.ErrTryAgainLater, what+": "+err.Error(), "")
	}
	return types.NewError(types.ErrInternal, what+": "+err.Error(), "")
}
