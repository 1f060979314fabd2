package testbed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"time"
)

// World is two federating homeservers, the link into A, and freshen before A where it was asked for.
type World struct {
	// Dir holds all data and logs of the run.
	Dir  string
	CA   *CA
	A, B *Homeserver
	// Link stands on A's federation address.
	Link *Link
	// Freshen is nil without [Options.Freshen].
	Freshen *Freshen

	http *http.Client
}

// Options say what a world is made of.
type Options struct {
	// Dir is an existing folder for data and logs. It is the caller's to remove.
	Dir string
	// A and B say which programs the homeservers are; Dendrite where they are empty.
	A, B Kind
	// Postgres holds, by the homeserver's name, the empty databases of those Synapses that are not to have an SQLite file.
	Postgres map[string]*url.URL
	// Freshen puts freshen before A.
	Freshen bool
	// Delivery has freshen make A, a Synapse on Postgres or a Dendrite, announce changes itself.
	Delivery bool
	// ManyRefreshes lifts freshen's limit for one destination, for tests that share B. That for one user stays.
	ManyRefreshes bool
	// Progress is told about builds that take minutes; nil for silence.
	Progress io.Writer
}

// Start builds what has to be built and starts a world. On an error nothing is left running. The caller closes it.
func Start(ctx context.Context, options Options) (*World, error) {
	w := &World{Dir: options.Dir, http: &http.Client{Transport: &http.Transport{}, Timeout: 10 * time.Second}}
	if err := w.start(ctx, options); err != nil {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopWithin)
		defer cancel()
		return nil, errors.Join(err, w.Close(closing))
	}
	return w, nil
}

func (w *World) start(ctx context.Context, options Options) error {
	var err error
	if w.CA, err = NewCA(w.Dir); err != nil {
		return err
	}
	if err := w.prepareA(ctx, options); err != nil {
		return err
	}
	nameB, err := freePort(ctx, usable(ctx, addressB))
	if err != nil {
		return err
	}
	if w.B, err = w.newHomeserver(ctx, "B", options.B, place{name: nameB, listen: nameB}, options); err != nil {
		return err
	}
	if err := together(func() error { return w.A.Start(ctx) }, func() error { return w.B.Start(ctx) }); err != nil {
		return err
	}
	if !options.Freshen {
		return nil
	}
	binary, err := BuildFreshen(ctx, w.Dir, options.Progress)
	if err != nil {
		return err
	}
	if w.Freshen, err = newFreshen(ctx, binary, w, options); err != nil {
		return err
	}
	return w.Freshen.Start(ctx)
}

// prepareA makes homeserver A and the link that stands on the address of its name.
func (w *World) prepareA(ctx context.Context, options Options) error {
	ip := usable(ctx, addressA)
	listener, err := listenFree(ctx, ip)
	if err != nil {
		return err
	}
	if err := w.linkA(ctx, options, ip, listener); err != nil {
		_ = listener.Close()
		return err
	}
	return nil
}

func (w *World) linkA(ctx context.Context, options Options, ip netip.Addr, listener net.Listener) error {
	name, err := netip.ParseAddrPort(listener.Addr().String())
	if err != nil {
		return fmt.Errorf("the address of the link: %w", err)
	}
	behind, err := freePort(ctx, ip)
	if err != nil {
		return err
	}
	if w.A, err = w.newHomeserver(ctx, "A", options.A, place{name: name, listen: behind}, options); err != nil {
		return err
	}
	w.Link, err = newLink(listener, w.A.certFile, w.A.keyFile, behind.String(), w.CA)
	return err
}

// Close stops everything, freshen first, and returns when it has stopped. The folder stays.
func (w *World) Close(ctx context.Context) error {
	var errs []error
	if w.Freshen != nil {
		errs = append(errs, w.Freshen.Stop(ctx))
	}
	errs = append(errs, together(func() error { return w.A.Stop(ctx) }, func() error { return w.B.Stop(ctx) }))
	if w.Link != nil {
		errs = append(errs, w.Link.Close())
	}
	w.http.CloseIdleConnections()
	return errors.Join(errs...)
}

// TempDir makes a folder for a world. It is the caller's to remove.
func TempDir() (string, error) {
	dir, err := os.MkdirTemp("", "freshen-world-")
	if err != nil {
		return "", fmt.Errorf("no folder for the testbed: %w", err)
	}
	return dir, nil
}

// together runs both and joins what went wrong.
func together(first, second func() error) error {
	done := make(chan error, 1)
	go func() { done <- second() }()
	err := first()
	return errors.Join(err, <-done)
}
