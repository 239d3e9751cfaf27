# A plain server in Perl: perl_socket.pl PORT.
use strict;
use warnings;
use IO::Socket::INET;

my ($secret, $count) = (join('', map { sprintf '%04x', rand 65536 } 1 .. 4), 0);
$SIG{PIPE} = 'IGNORE';
my $listener = IO::Socket::INET->new(
    LocalAddr => '0.0.0.0', LocalPort => $ARGV[0], Listen => 64, ReuseAddr => 1,
) or die "listen: $!";
while (1) {
    my $client = $listener->accept or next;
    while (defined(my $line = <$client>)) { last if $line =~ /^\r?\n$/ }
    $count++;
    my $work = 0;
    $work += $_ * $_ for 0 .. 999;
    print $client "HTTP/1.0 200 OK\r\n\r\n$secret $count $work";
    close $client;
}
