<?php
// PHP's own server keeps nothing between requests; APCu keeps the state in shared memory.
apcu_add('secret', bin2hex(random_bytes(8)));
$count = apcu_inc('count');
$work = 0;
for ($i = 0; $i < 1000; $i++) {
    $work += $i * $i;
}
echo apcu_fetch('secret'), ' ', $count, ' ', $work;
