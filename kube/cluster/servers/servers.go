// Package servers reaches a cluster's API servers at any of several addresses: the configured ones, and those that
// the cluster itself named, which are kept on disk for the next start. It never uses the ClusterIP of the Service
// "kubernetes": on a node whose Services Tapestry serves, nobody would answer there before the agent has talked to
// the API server.
package servers

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"tapestry.dev/tapestry/addressing"
)

// ProbePath is the path where a server says whether it is ready. A server that answers with a failure is passed over
// for the next.
const ProbePath = "/readyz"

// Servers holds the addresses of one cluster's API servers. Its methods are safe for concurrent use.
type Servers struct {
	file       string
	configured []url.URL

	mu sync.Mutex
	// mu guards the rest.
	learned []netip.AddrPort
	// unwritten says that the file does not have learned.
	unwritten bool
	good      string // host:port of the server that answered last, "" for none
}

// New returns the servers with the given URLs, like "https://10.0.0.1:6443"; there must be at least one. Learned
// addresses are kept in file; those that it holds already are used too.
func New(configured []string, file string) (*Servers, error) {
	s := &Servers{file: file}
	for _, text := range configured {
		u, err := parse(text)
		if err != nil {
			return nil, err
		}
		s.configured = append(s.configured, u)
	}
	if len(s.configured) == 0 {
		return nil, errors.New("there is no address of an API server: give one like https://10.0.0.1:6443")
	}
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the API servers' addresses: %w", err)
	}
	// Damaged content does no harm: the addresses are learned again.
	_ = json.Unmarshal(data, &s.learned)
	return s, nil
}

func parse(text string) (url.URL, error) {
	u, err := url.Parse(text)
	if at := strings.LastIndexByte(text, '@'); at >= 0 { // a password may stand before it
		return url.URL{}, fmt.Errorf("the address of an API server, ...%q, has a user or password: remove it, tokens and certificates authenticate the agent", text[at:])
	}
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return url.URL{}, fmt.Errorf("%q is no address of an API server: expected one like https://10.0.0.1:6443", text)
	}
	if ip, err := netip.ParseAddr(u.Hostname()); u.Scheme == "http" && u.Hostname() != "localhost" && (err != nil || !ip.IsLoopback()) {
		return url.URL{}, fmt.Errorf("%q would show our token to the network: use https", text)
	}
	return url.URL{Scheme: u.Scheme, Host: u.Host}, nil
}

// Learn sets the addresses that the cluster names for its API servers. It writes them to the file for the next start
// when they have changed, or could not be written before. An empty list is ignored: all servers are down then, and the
// known addresses are the best there are.
func (s *Servers) Learn(addrs []netip.AddrPort) error {
	addrs = slices.Clone(addrs)
	slices.SortFunc(addrs, netip.AddrPort.Compare)
	addrs = slices.Compact(addrs)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(addrs) == 0 || slices.Equal(addrs, s.learned) && !s.unwritten {
		return nil
	}
	s.learned, s.unwritten = addrs, true
	data, err := json.Marshal(addrs)
	if err != nil {
		return err
	}
	if err := WriteFile(s.file, data); err != nil {
		return fmt.Errorf("keep the API servers' addresses for the next start: %w", err)
	}
	s.unwritten = false
	return nil
}

// WriteFile replaces a file atomically. The file is readable for the group, so that a step before the agent, which
// runs as another user, can read what the agent has learned.
func WriteFile(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*.tmp")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Chmod(0o640), f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

// Current returns the server that answered last, "host:port", or "" when none has.
func (s *Servers) Current() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.good
}

// Addrs returns the addresses of the servers, sorted: the learned ones, and those configured as an IP address.
func (s *Servers) Addrs() []netip.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []netip.Addr
	for i := range s.configured {
		if ip, err := netip.ParseAddr(s.configured[i].Hostname()); err == nil {
			list = append(list, ip.Unmap())
		}
	}
	for _, a := range s.learned {
		list = append(list, a.Addr())
	}
	slices.SortFunc(list, netip.Addr.Compare)
	return slices.Compact(list)
}

// Within returns the configured servers whose address lies in one of the ranges.
func (s *Servers) Within(ranges []netip.Prefix) []string {
	var list []string
	for i := range s.configured {
		ip, err := netip.ParseAddr(s.configured[i].Hostname())
		if err == nil && addressing.Contains(ranges, ip.Unmap()) {
			list = append(list, s.configured[i].String())
		}
	}
	return list
}

// order returns the servers in the order in which they are tried: the one that answered last, then the configured,
// then the learned ones.
func (s *Servers) order() []url.URL {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := slices.Clone(s.configured)
	for _, a := range s.learned {
		if host := a.String(); !slices.ContainsFunc(list, func(u url.URL) bool { return u.Host == host }) {
			list = append(list, url.URL{Scheme: "https", Host: host})
		}
	}
	if i := slices.IndexFunc(list, func(u url.URL) bool { return u.Host == s.good }); i > 0 {
		good := list[i]
		list = slices.Insert(slices.Delete(list, i, i+1), 0, good)
	}
	return list
}

func (s *Servers) answered(host string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.good = host
}

// Wrap returns a RoundTripper that sends a request to the servers in turn until one answers. The host in the
// request's URL is ignored. Requests must be idempotent: when a connection breaks, nobody knows whether the server
// has executed the request.
func (s *Servers) Wrap(next http.RoundTripper) http.RoundTripper { return &transport{s, next} }

type transport struct {
	servers *Servers
	next    http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	var errs []error
	list := t.servers.order()
	for i, server := range list {
		r := req.Clone(req.Context())
		r.URL.Scheme, r.URL.Host, r.Host = server.Scheme, server.Host, ""
		if i > 0 && req.Body != nil && req.Body != http.NoBody {
			if req.GetBody == nil {
				break
			}
			var err error
			if r.Body, err = req.GetBody(); err != nil {
				return nil, err
			}
		}
		resp, err := t.next.RoundTrip(r)
		switch {
		case err == nil && resp.StatusCode >= 500 && req.URL.Path == ProbePath && i+1 < len(list):
			_ = resp.Body.Close()
			errs = append(errs, fmt.Errorf("%s: it is not ready: %s", server.Host, resp.Status))
			continue
		case err == nil:
			t.servers.answered(server.Host)
			return resp, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", server.Host, err))
		if req.Context().Err() != nil {
			break
		}
	}
	return nil, errors.Join(errs...)
}

// WrappedRoundTripper lets client-go see the wrapped transport.
func (t *transport) WrappedRoundTripper() http.RoundTripper { return t.next }
