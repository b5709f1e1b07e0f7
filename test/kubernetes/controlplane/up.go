package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// up returns the reason when a component has ended, or nil after a signal.
func up(o options) error {
	began := time.Now()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()

	ready := filepath.Join(o.dir, "ready")
	if err := os.MkdirAll(o.dir, 0o700); err != nil {
		return err
	}
	if err := os.Remove(ready); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	ports := []*int{&o.port, new(int), new(int)}
	for _, p := range ports {
		if *p != 0 {
			continue
		}
		var err error
		if *p, err = freePort(); err != nil {
			return err
		}
	}
	local := "https://" + net.JoinHostPort(reachable(o.bind), strconv.Itoa(o.port))
	remote := "https://" + net.JoinHostPort(o.advertise, strconv.Itoa(o.port))
	if err := makePKI(o, local, remote); err != nil {
		return fmt.Errorf("make the certificates: %w", err)
	}
	client, err := adminClient(o)
	if err != nil {
		return err
	}

	died := make(chan error, 4)
	c := newComponents()
	etcd, err := startEtcd(o.dir, died)
	if err != nil {
		return fmt.Errorf("start etcd: %w", err)
	}
	run(c.apiserver, o.apiserverFlags(etcd), died)
	if err := wait(ctx, client, local+"/readyz", died); err != nil {
		return interrupted(ctx, err)
	}
	fmt.Printf("API server ready after %.1f s: %s\n", time.Since(began).Seconds(), local)
	run(c.manager, o.managerFlags(*ports[1]), died)
	if o.scheduler {
		run(c.scheduler, o.schedulerFlags(*ports[2]), died)
	}
	// No pod can be made without this account. Its existence also shows that the controllers work.
	if err := wait(ctx, client, local+"/api/v1/namespaces/default/serviceaccounts/default", died); err != nil {
		return interrupted(ctx, err)
	}
	if err := writeWhole(ready, local); err != nil {
		return err
	}
	fmt.Printf("controllers work after %.1f s: KUBECONFIG=%s\n", time.Since(began).Seconds(), o.kubeconfig("admin"))
	select {
	case <-ctx.Done():
		return nil
	case err := <-died:
		return err
	}
}

// reachable returns the address at which a listener on bind can be reached from this machine.
func reachable(bind string) string {
	if a, err := netip.ParseAddr(bind); err == nil && a.IsUnspecified() {
		return "127.0.0.1"
	}
	return bind
}

func interrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func adminClient(o options) (*http.Client, error) {
	ca, err := os.ReadFile(o.pki("ca.crt"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	cert, err := tls.LoadX509KeyPair(o.pki("admin.crt"), o.pki("admin.key"))
	if err != nil {
		return nil, err
	}
	return &http.Client{
		Timeout:   5 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{cert}}},
	}, nil
}

// wait returns nil when a GET of url succeeds.
func wait(ctx context.Context, client *http.Client, url string, died <-chan error) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-died:
			return err
		case <-tick.C:
		}
		r, err := client.Get(url)
		if err != nil {
			continue
		}
		_, err = io.Copy(io.Discard, r.Body)
		r.Body.Close()
		if err == nil && r.StatusCode == http.StatusOK {
			return nil
		}
	}
}

// writeWhole writes a file. No reader ever sees a part of the content.
func writeWhole(path, content string) error {
	if err := os.WriteFile(path+".new", []byte(content), 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
