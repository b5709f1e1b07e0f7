package kubelet

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"syscall"
	"time"
)

// eager is the first pause between probes of a container that was just started. Such a container usually listens long
// before the first period is over.
const eager = 50 * time.Millisecond

// watch probes until ctx ends or decide returns false. It tells decide the first result and every change: ok, or the
// reason why not. With impatient set, it probes a starting container more often than the period says.
func (c *container) watch(ctx context.Context, p *Probe, impatient bool, decide func(ok bool, err error) bool) {
	if !sleep(ctx, p.InitialDelay) {
		return
	}
	pause := p.Period
	if impatient {
		pause = min(eager, p.Period)
	}
	ready, known, row := false, false, 0
	var last bool
	for {
		err := c.probe(ctx, p)
		if ctx.Err() != nil {
			return
		}
		ok := err == nil
		if ok == last {
			row++
		} else {
			last, row = ok, 1
		}
		enough := ok && row >= p.Success || !ok && row >= p.Failure
		if enough && (!known || ok != ready) {
			ready, known = ok, true
			if !decide(ok, err) {
				return
			}
		}
		if ready {
			pause = p.Period
		}
		if !sleep(ctx, pause) {
			return
		}
		pause = min(2*pause, p.Period)
	}
}

// probe probes once.
func (c *container) probe(ctx context.Context, p *Probe) error {
	ctx, cancel := context.WithTimeoutCause(ctx, p.Timeout, fmt.Errorf("no answer within %s", p.Timeout))
	defer cancel()
	var err error
	switch {
	case p.HTTP != nil:
		err = c.probeHTTP(ctx, p.HTTP)
	case p.TCP.IsValid():
		var conn net.Conn
		if conn, err = c.sb.Dial(ctx, "tcp", p.TCP.String()); err == nil {
			conn.Close()
		}
	default:
		err = c.probeExec(ctx, p.Exec)
	}
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

func (c *container) probeHTTP(ctx context.Context, p *HTTPProbe) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.URL, nil)
	if err != nil {
		return err
	}
	for name, values := range p.Header {
		for _, v := range values {
			req.Header.Add(name, v)
		}
	}
	if host := req.Header.Get("Host"); host != "" {
		req.Host = host
	}
	req.Header.Set("User-Agent", "kube-probe/tapestry")
	transport := &http.Transport{
		DialContext:       c.sb.Dial,
		DisableKeepAlives: true,
		// Kubernetes does not verify certificates here either. The probe only asks whether the server answers.
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode >= 400 {
		return fmt.Errorf("GET %s: %s", p.URL, resp.Status)
	}
	return nil
}

func (c *container) probeExec(ctx context.Context, argv []string) error {
	p, err := c.sb.Start(Command{Argv: argv, Env: c.spec.Env, Dir: c.spec.Dir})
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = p.Signal(syscall.SIGKILL) })
	defer stop()
	if code := p.Wait(); code != 0 {
		return errors.Join(ctx.Err(), fmt.Errorf("%s: exit code %d", argv[0], code))
	}
	return nil
}
